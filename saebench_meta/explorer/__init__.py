"""The explorer of a run folder: pages that open from disk, without a server or a network.

An SAE's latents can be searched by number, token and explanation. A latent shows its meta-latents, the latents that
share them (paper, figure 1), passages of the corpus in which it is most active, and the tokens it boosts; a meta-latent
shows its latents. The data lie beside the page in small scripts, each read when it is first needed.

`sources` finds what the records hold, `activity`, `passages` and `lens` work out the rest, `folder` writes it all.
"""

FOLDER, PAGE = "explorer", "index.html"
"""Where a run folder's explorer is, unless the user says."""
