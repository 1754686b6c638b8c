"""A corpus whose documents say which of their words are learned is never trained on as a whole."""

import pytest
from loader_cases import MODEL, stage

from megatron_apriel.data.corpus.format import UsageRecord
from megatron_apriel.data.loading.sources import check_fits
from megatron_apriel.errors import DataError


@pytest.mark.parametrize("loss", ["all", "responses"])
def test_marks_are_not_passed_over_by_the_mixture(loss, corpora):
    manifest = corpora["pictures"].manifest.model_copy(update={"usage": UsageRecord(marked=3)})
    (section,) = stage(corpora, sources=[{"corpus": corpora["pictures"].path, "loss": loss}]).mixture
    if loss == "responses":
        check_fits(section, manifest, MODEL)
        return
    with pytest.raises(DataError, match=r"3 of its documents say which of their words(?s:.*)to responses"):
        check_fits(section, manifest, MODEL)
