"""`--judge first`: a judge that always takes the first option. A task's score with it is chance."""

from saebench_meta import hookimpl

saebench_api = 1


class First:
    name = "first"
    version = "1"

    def ask(self, prompts):
        return ["1" for _ in prompts]


@hookimpl
def saebench_judges():
    return {"first": First}
