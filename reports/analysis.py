"""analysis.html: what is right and wrong about captions, with the worst and the best of them."""

from collections.abc import Mapping

from data.images import ImageFolder
from data.shard_set import ShardSet
from metrics.analysis import Analysis
from outputs import OutputFolder
from reports.html import data_url, inserted, thumbnail, write_html
from utils import UserError

ANALYSIS_PAGE = "analysis.html"
_SHOWN = 20  # worst captions, and as many of the best


def write_analysis(
    outputs: OutputFolder,
    title: str,
    analysis: Analysis,
    scores: Mapping[str, float],
    images: ImageFolder | ShardSet,
) -> None:
    """Write the page: one file, which needs nothing beside it and no network.

    scores: of the whole set, by name. An image that cannot be read is left out of its card. Raises UserError
    if the page cannot be written.
    """
    ranked = list(analysis.scores)
    shown = min(_SHOWN, (len(ranked) + 1) // 2)  # no image is among the worst and the best, if there are two
    write_html(
        outputs,
        ANALYSIS_PAGE,
        "analysis.html.j2",
        title=title,
        num_images=len(ranked),
        analysis=analysis,
        scores=scores,
        parts={
            "worst": [_card(analysis, image, images) for image in ranked[:shown]],
            "best": [_card(analysis, image, images) for image in reversed(ranked[-shown:])],
        },
        css=inserted("page.css", "analysis.css"),
    )


def _card(analysis: Analysis, image: str, images: ImageFolder | ShardSet) -> dict:
    words = analysis.words[image].values()
    return {
        "name": image,
        "caption": analysis.captions[image],
        "thumbnail": _thumbnail_url(images, image),
        "scores": analysis.scores[image],
        "wrong": sorted(word for found in words for word in found.wrong),
        "missed": sorted(word for found in words for word in found.missed),
        "other": analysis.others and analysis.others.captions[image],
        "references": analysis.references[image],
    }


def _thumbnail_url(images: ImageFolder | ShardSet, name: str) -> str:
    """The thumbnail itself as a URL; empty if the image cannot be read."""
    try:
        image = images.read(name)
    except UserError:
        return ""
    return data_url(thumbnail(image))
