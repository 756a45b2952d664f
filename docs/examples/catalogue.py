"""Two SAEs of a laboratory, by reference. The scheme `ourlab` would be this plugin's loader."""

from saebench_meta import CatalogueEntry, hookimpl

saebench_api = 1


@hookimpl
def saebench_catalogue():
    for d_sae in (4096, 16384):
        yield CatalogueEntry(
            ref=f"ourlab:gpt2-layer8-{d_sae}",
            model="gpt2",
            hook="blocks.8.hook_resid_pre",
            d_in=768,
            d_sae=d_sae,
            architecture="batchtopk",
            k=32,
        )
