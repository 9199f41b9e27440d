"""YAML as far as a configuration needs it, without what could mislead or overwhelm its reader."""

from collections import Counter
from typing import Any

import yaml

_MAX_VALUES = 10_000  # that a text may stand for, with each alias replaced by what it names


class _Loader(yaml.SafeLoader):
    """Refuses repeated keys, tags, and aliases that multiply; dates are text, as in run.name=2024-05-01."""

    def compose_node(self, parent, index):
        event = self.peek_event()
        if getattr(event, "tag", None) is not None:
            raise yaml.MarkedYAMLError(
                problem=f"the tag {event.tag} is not allowed", problem_mark=event.start_mark
            )
        return super().compose_node(parent, index)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read_yaml(text: str) -> Any:
    """The value of a YAML text, None if it is empty. Raises ValueError, which says why, if there is none."""
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if _count(node, {}) > _MAX_VALUES:
            raise ValueError(f"it stands for more than {_MAX_VALUES:,} values")
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    finally:
        if loader is not None:
            loader.dispose()


def _count(node: yaml.Node, known: dict[yaml.Node, int]) -> int:
    """How many values a node stands for. Raises ValueError for a repeated key or a node that contains itself.

    `known`: the counts of nodes that were counted before; 0 for those that contain this one.
    """
    if node in known:
        if not known[node]:
            raise ValueError("an alias names what it is part of")
        return known[node]
    known[node] = 0
    children = []
    if isinstance(node, yaml.MappingNode):
        keys = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        for key, count in keys.most_common(1):
            if count > 1:
                raise ValueError(f"the key {key!r} is repeated")
        children = [part for pair in node.value for part in pair]
    elif isinstance(node, yaml.SequenceNode):
        children = node.value
    known[node] = 1 + sum(_count(child, known) for child in children)
    return known[node]
