"""Two towns of a model called `toytowns`, and the questions that it answers about them."""

from saebench_meta import Cities, CityLoader, DataIdentity, hookimpl

saebench_api = 1


def load():
    return Cities(
        facts={"Upton": {"river": "Ash"}, "Downton": {"river": "Birch"}},
        selection={"river": ("The river of {city} is the",)},
        heldout={"river": ("A boat to {city} goes up the",)},
    )


def peek():
    return DataIdentity(ref="toytowns", sha256="raise me when the cities change")


@hookimpl
def saebench_cities():
    return {"toytowns": CityLoader(load, peek, models=("toytowns",), summary="two towns on two rivers")}
