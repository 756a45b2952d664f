"""`--world coins:N`: N features, each on half of the time with magnitude 1, each along a dimension of its own."""

from saebench_meta import WorldLoader, hookimpl

saebench_api = 1


class Coins:
    def __init__(self, n):
        self.n = n
        self.name = f"coins:{n}"
        self.features = tuple(f"coin {i}" for i in range(n))

    @property
    def directions(self):
        import torch

        return torch.eye(self.n)

    def sample(self, n, seed):
        import torch

        on = torch.rand(n, self.n, generator=torch.Generator().manual_seed(seed)) < 0.5
        return on.float(), on.float()


@hookimpl
def saebench_worlds():
    return {"coins": WorldLoader(lambda n: Coins(int(n)), names=("4",), summary="independent features")}
