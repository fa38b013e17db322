"""The catalog of data sets by name, and its messages about unknown parameters."""

import numpy as np
import pytest

from seg2any.data.catalog import open_data_set
from seg2any.system.errors import UserError


def test_catalog_names_data_sets_and_parameters():
    data = open_data_set("shapes", {"n_scenes": 3, "seed": 1})
    assert len(data) == 3 and data[0].image.dtype == np.uint8
    with pytest.raises(UserError, match="choose one of ade20k"):
        open_data_set("ade", {})
    with pytest.raises(UserError, match="unknown parameter 'colour'; it takes split, n_scenes, .* is_group_bucket"):
        open_data_set("shapes", {"colour": 1})
    for misspelt, meant in (("scenes", "n_scenes"), ("is_group_buckt", "is_group_bucket")):
        with pytest.raises(UserError, match=f"unknown parameter '{misspelt}'; did you mean '{meant}'"):
            open_data_set("shapes", {misspelt: 1})


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"n_scenes": "abc"}, "data set shapes: parameter 'n_scenes' is 'abc'; give int"),
        ({"n_scenes": 2.5}, "parameter 'n_scenes' is 2.5"),
        ({"n_scenes": None}, "parameter 'n_scenes' is None"),
        ({"seed": True}, "parameter 'seed' is True"),
        ({"seed": -1}, "seed is -1"),
        ({"split": 3}, "parameter 'split' is 3; give str"),
        ({"is_group_bucket": "maybe"}, "parameter 'is_group_bucket' is 'maybe'; give bool"),
        ({"entities": 3}, "parameter 'entities' is 3; give tuple[int, int] | None"),
        ({"entities": [1, "a"]}, "parameter 'entities'"),
        ({"entities": [1, 2, 3]}, "parameter 'entities'"),
        ({"entities": [4, 2]}, "entities is [4, 2]"),
    ],
)
def test_catalog_names_a_parameter_of_another_type(params, message):
    with pytest.raises(UserError) as caught:
        open_data_set("shapes", params)
    assert message in str(caught.value)
