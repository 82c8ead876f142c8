"""A method that cannot be is refused in one sentence that names the value."""

import pytest

from timeripple.attention.method import ConfigError
from timeripple.clips.methods import parse_method


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pab:0", "skip_range 0"),
        ("pab:2:start=900", "start 900 and end 800"),
        ("pab:2.5", "'2.5'"),
        ("faster-cache:0", "skip_range 0"),
        ("first-block-cache:-1", "threshold -1"),
        ("mag-cache:-1", "threshold -1"),
        ("mag-cache:0.1:max_skip=0", "max_skip 0"),
        ("mag-cache:0.1:retention=2", "retention 2"),
        ("taylorseer:0", "interval 0"),
        ("taylorseer:2:order=-1", "order -1"),
        ("delta-dit:0", "interval 0"),
        ("delta-dit:2:share=0", "share 0"),
        ("delta-dit:2:boundary=2", "boundary 2"),
        ("taylorseer:2:spacing=odd", "spacing 'odd'"),
        ("forecast:0", "share 0"),
        ("forecast:order=3", "order 3"),
        ("spectrum:ridge=0", "ridge 0"),
        ("spectrum:start=0", "start 0"),
        ("easycache:-1", "threshold -1"),
        ("easycache:retention=2", "retention 2"),
        ("teacache:-1", "threshold -1"),
        ("cache-dit:-1", "threshold -1"),
        ("cache-dit:first=2", "first 2"),
        ("taylorseer:2:3", "given twice"),
        ("taylorseer:speed=2", "'speed'"),
        ("token:0.7+pab+taylorseer", "stacks too much"),
        ("pab+taylorseer", "stacks too much"),
        ("dense+pab", "stacks on nothing"),
        ("output-cache:1", "budget 1.0"),
        ("output-cache:nan", "budget nan"),
        ("output-cache:x", "'x'"),
        ("output-cache:0.5:0.6", "twice"),
        ("output-cache:theta=1", "'theta'"),
        ("output-cache:dense_first=2", "dense_first 2"),
        ("output-cache:dense_last=-1", "dense_last -1"),
        ("svg2:0.5:key_cluster=0", "key_cluster 0 is not a number of tokens"),
        ("svg2:query_cluster=x", "query_cluster=x is not a number of tokens"),
        ("svg2:key_cluster=4:key_cluster=4", "'key_cluster' is given twice"),
        ("svg2:0.5:axes=ty", "'axes'"),
        ("svg2:0.5:theta=0.1", "exclude each other"),
    ],
)
def test_errors_are_one_sentence_that_names_the_value(text, message):
    with pytest.raises(ConfigError, match=message) as error:
        parse_method(text)
    assert "\n" not in str(error.value)
