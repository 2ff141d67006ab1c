"""The search for pairs that are certain.

A pair is certain when the two have the same name, or names that mean the same (see `vocabulary`),
and no rival; or when within what is paired around them nothing else fits, on either side; or when
several fit each other only in the order of their numbers. How alike two names are spelled is no
evidence.
"""

from collections.abc import Iterator, Sequence

from nnxconv.matching.fitting import Fitting
from nnxconv.matching.modules import ModuleFamily, scopes_in
from nnxconv.matching.nesting import unnested
from nnxconv.matching.orientation import Scopes
from nnxconv.matching.pairs import ModulePair
from nnxconv.matching.scope_search import ScopeSearch
from nnxconv.matching.scopes import pair_scopes
from nnxconv.matching.series import series_as_layers


class Search:
    """What is known of two trees while their modules are paired.

    Attributes:
      certain: the pairs so far, in the order in which they were found.
      left, right: the modules of the source and of the template.
      scopes: the pairs of scopes.
    """

    def __init__(self, left: Sequence[ModuleFamily], right: Sequence[ModuleFamily]) -> None:
        self.scopes = pair_scopes(left, right)
        left = unnested(left, {path for path, _ in self.scopes})
        right = unnested(right, {path for _, path in self.scopes})
        counted = series_as_layers(left, right, self.scopes)
        self.left, self.right = left, right = counted.left, counted.right
        self.certain: list[ModulePair] = []
        self._fitting = fitting = Fitting(left, right)
        here, there = scopes_in(left), scopes_in(right)
        self._searches = [
            ScopeSearch(fitting, (a, b), here[a], there[b])
            for a, b in self.scopes
            if a in here and b in there
        ]
        self._searches += [
            ScopeSearch(fitting, (a.scope.path, b.scope.path), [a], [b]) for a, b in counted.pairs
        ]

    def run(self) -> None:
        """Takes pairs as long as there is evidence for one."""
        is_new = True
        while is_new:
            found = [pair for search in self._searches for pair in search.step()]
            self.certain += found
            is_new = bool(found)

    def role(self, module: ModuleFamily) -> str:
        """What a module is; empty where it is not known."""
        return self._fitting.role(module)

    def with_leaves(self, found: ModulePair) -> ModulePair:
        """The pair with what is known of each of its leaves."""
        return self._fitting.with_leaves(found)

    def candidates(self) -> Iterator[tuple[Scopes, ModuleFamily, list[ModuleFamily]]]:
        """What is left on the source's side, and what of the template it could be."""
        for search in self._searches:
            for module, found in search.candidates():
                yield search.scope, module, found
