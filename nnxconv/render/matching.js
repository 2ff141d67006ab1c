"use strict";
(() => {
  const page = JSON.parse(document.getElementById("page").textContent);
  const element = (id) => document.getElementById(id);

  // What a leaf can be; the first one that its pairs are is shown where there is room for one.
  const KINDS = {
    certain: { name: "certain", mark: "=" },
    turned: { name: "certain, but turned or not", mark: "±" },
    proposed: { name: "proposed", mark: "~" },
    open: { name: "open", mark: "?" },
    only: { name: "only here", mark: "−" },
  };
  const NAMES = Object.keys(KINDS);
  const ROW = 24; // pixels, as in matching.css
  const MARGIN = 10; // rows that are drawn above and below what is seen
  const UNFOLDED_ROWS = 120; // at the start, so that a large tree is its modules
  const FEW_ROWS = 10; // which tell nothing of a tree
  const MAX_PAIRS = 100;
  const SVG = "http://www.w3.org/2000/svg";

  const now = { words: [], hidden: new Set(), side: 0, selected: null };

  const made = (tag, className, text) => {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const whole = (value) => value.toLocaleString("en-US");

  /* Leaves and their pairs */

  page.sides.forEach((side) => {
    for (const leaf of side.leaves) {
      leaf.key = leaf.path.join(".");
      leaf.lower = `${leaf.key} ${leaf.collection}`.toLowerCase();
      leaf.links = [];
    }
  });
  for (const link of page.links) {
    link.ends.forEach((end, side) => {
      for (const number of end) page.sides[side].leaves[number].links.push(link);
    });
  }
  for (const side of page.sides) {
    for (const leaf of side.leaves) {
      const kinds = new Set(leaf.links.map((link) => link.kind));
      leaf.kind = NAMES.find((name) => kinds.has(name)) ?? "only";
    }
  }
  const leavesOf = (link, side) => link.ends[side].map((number) => page.sides[side].leaves[number]);

  /* A link counts when its kind is shown and each word occurs in a key at one of its ends. */

  const hasWords = (texts) => now.words.every((word) => texts.some((text) => text.includes(word)));
  function choose() {
    for (const side of page.sides) for (const leaf of side.leaves) leaf.isShown = false;
    for (const link of page.links) {
      const ends = [...leavesOf(link, 0), ...leavesOf(link, 1)];
      link.isShown = !now.hidden.has(link.kind) && hasWords(ends.map((leaf) => leaf.lower));
      if (link.isShown) for (const leaf of ends) leaf.isShown = true;
    }
    for (const side of page.sides) {
      for (const leaf of side.leaves) {
        if (leaf.kind === "only") leaf.isShown = !now.hidden.has("only") && hasWords([leaf.lower]);
      }
    }
  }

  /* Trees: modules with one thing in them are one row with it */

  function treeOf(side) {
    const root = { label: "", below: [], names: new Map(), above: null, depth: -1 };
    for (const number of side.order) {
      const leaf = side.leaves[number];
      let node = root;
      for (const name of leaf.path.slice(0, -1)) {
        if (!node.names.has(name)) {
          const child = { label: name, below: [], names: new Map(), above: node };
          node.names.set(name, child);
          node.below.push(child);
        }
        node = node.names.get(name);
      }
      leaf.node = { label: leaf.path.at(-1), leaf, below: [], above: node };
      node.below.push(leaf.node);
    }
    join(root);
    number(root);
    return root;
  }
  function join(root) {
    const rest = [root];
    while (rest.length) {
      const node = rest.pop();
      node.below = node.below.map((child) => {
        while (!child.leaf && child.below.length === 1 && !child.below[0].leaf) {
          child.below[0].label = `${child.label}.${child.below[0].label}`;
          child = child.below[0];
        }
        child.above = node;
        return child;
      });
      rest.push(...node.below);
    }
  }
  function number(root) {
    root.order = [];
    const rest = [root];
    while (rest.length) {
      const node = rest.pop();
      node.id = root.order.length;
      node.depth = node.above ? node.above.depth + 1 : -1;
      root.order.push(node);
      for (const child of [...node.below].reverse()) rest.push(child);
    }
  }
  const keyOf = (node) =>
    node.leaf ? node.leaf.key : node.above?.above ? `${keyOf(node.above)}.${node.label}` : node.label;

  const trees = page.sides.map((side, place) => ({
    side: place,
    root: treeOf(side),
    rows: [],
    panel: element(`tree-${place}`),
    space: made("div", "space"),
    drawn: "",
  }));
  trees.forEach((tree, place) => {
    element(`title-${place}`).lastElementChild.textContent = page.sides[place].label;
    tree.space.setAttribute("role", "presentation");
    tree.panel.append(tree.space);
  });

  function count(tree) {
    for (const node of tree.root.order) node.counts = {};
    for (const leaf of page.sides[tree.side].leaves) {
      if (!leaf.isShown) continue;
      for (let node = leaf.node; node; node = node.above) {
        node.counts[leaf.kind] = (node.counts[leaf.kind] ?? 0) + leaf.count;
      }
    }
    for (const node of tree.root.order) node.isShown = Object.keys(node.counts).length > 0;
  }

  /* What is unfolded: as many levels as there is room for; all that fits a search */

  function unfold(tree, limit) {
    for (const node of tree.root.order) node.isOpen = false;
    tree.root.isOpen = true;
    let rows = tree.root.below.length;
    let level = tree.root.below;
    while (level.length) {
      const next = level.flatMap((node) => node.below.filter((child) => child.isShown));
      if (rows + next.length > limit && (rows >= FEW_ROWS || !limit)) return;
      rows += next.length;
      for (const node of level) node.isOpen = node.below.length > 0;
      level = next;
    }
  }
  function lay(tree) {
    for (const node of tree.root.order) node.row = -1;
    tree.rows = [];
    const rest = [tree.root];
    while (rest.length) {
      const node = rest.pop();
      if (node !== tree.root) {
        node.row = tree.rows.length;
        tree.rows.push(node);
      }
      if (!node.isOpen) continue;
      for (let n = node.below.length - 1; n >= 0; n--) {
        if (node.below[n].isShown) rest.push(node.below[n]);
      }
    }
    tree.space.style.height = `${tree.rows.length * ROW}px`;
    tree.drawn = "";
  }
  function rowOf(leaf) {
    let node = leaf.node;
    while (node && node.row < 0) node = node.above;
    return node;
  }

  /* Lines: one for all pairs of two rows and of one kind */

  let lines = [];
  function joinRows() {
    const found = new Map();
    for (const link of page.links) {
      if (!link.isShown) continue;
      for (const a of leavesOf(link, 0)) {
        for (const b of leavesOf(link, 1)) {
          const rows = [rowOf(a), rowOf(b)];
          if (!rows[0] || !rows[1]) continue;
          const name = `${rows[0].id} ${rows[1].id} ${link.kind}`;
          if (!found.has(name)) found.set(name, { rows, kind: link.kind });
        }
      }
    }
    lines = [...found.values()];
  }
  const isUnder = (node, above) => {
    while (node && node !== above) node = node.above;
    return node === above;
  };
  const isSelected = (line) =>
    now.selected !== null && isUnder(line.rows[now.side], now.selected);

  function drawLines() {
    const svg = element("lines");
    const height = trees[0].panel.clientHeight;
    const width = svg.clientWidth;
    const shapes = [];
    for (const line of lines) {
      const ys = line.rows.map(
        (node, side) => (node.row + 0.5) * ROW - trees[side].panel.scrollTop,
      );
      if (ys.every((y) => y < 0 || y > height)) continue;
      const shape = document.createElementNS(SVG, "path");
      const bend = width / 2;
      shape.setAttribute("d", `M0,${ys[0]} C${bend},${ys[0]} ${bend},${ys[1]} ${width},${ys[1]}`);
      shape.setAttribute("class", isSelected(line) ? `${line.kind} selected` : line.kind);
      shapes.push(shape);
    }
    shapes.sort((a, b) => a.classList.contains("selected") - b.classList.contains("selected"));
    svg.replaceChildren(...shapes);
  }

  /* Rows: those that are seen, and a few more */

  function drawRows(tree) {
    const first = Math.max(0, Math.floor(tree.panel.scrollTop / ROW) - MARGIN);
    const last = first + Math.ceil(tree.panel.clientHeight / ROW) + 2 * MARGIN;
    const name = `${first} ${last}`;
    if (tree.drawn === name) return;
    tree.drawn = name;
    const paired = new Set(lines.filter(isSelected).map((line) => line.rows[1 - now.side]));
    const items = tree.rows.slice(first, last).map((node) => itemOf(tree, node, paired));
    tree.space.replaceChildren(...items);
    const selected = tree.side === now.side && now.selected?.row >= 0 ? now.selected : null;
    if (selected && items.some((item) => item.id === `${tree.side}-${selected.id}`)) {
      tree.panel.setAttribute("aria-activedescendant", `${tree.side}-${selected.id}`);
    } else {
      tree.panel.removeAttribute("aria-activedescendant");
    }
  }
  function itemOf(tree, node, paired) {
    const item = made("div", "item");
    const isSelectedRow = tree.side === now.side && node === now.selected;
    item.id = `${tree.side}-${node.id}`;
    item.style.top = `${node.row * ROW}px`;
    item.style.paddingLeft = `${0.4 + node.depth}rem`;
    item.setAttribute("role", "treeitem");
    item.setAttribute("aria-level", node.depth + 1);
    item.setAttribute("aria-selected", isSelectedRow);
    if (node.below.length) item.setAttribute("aria-expanded", node.isOpen);
    if (tree.side !== now.side && paired.has(node)) item.classList.add("paired");
    item.append(made("i", "", node.below.length ? (node.isOpen ? "▾" : "▸") : ""));
    item.append(made("b", node.leaf ? "" : "branch", node.label || "(array)"));
    if (node.leaf) item.append(made("span", "dim", toldOf(node.leaf)));
    item.append(marksOf(node));
    item.setAttribute("aria-label", labelOf(node));
    return item;
  }
  const toldOf = (leaf) => [leaf.told, leaf.collection].filter(Boolean).join(", ");
  const kindsOf = (node) => NAMES.filter((name) => node.counts[name]);
  function marksOf(node) {
    const marks = made("span", "marks");
    for (const name of node.isOpen ? [] : kindsOf(node)) {
      const text = node.leaf ? KINDS[name].mark : `${whole(node.counts[name])} ${KINDS[name].mark}`;
      const mark = made("span", name, text);
      mark.title = KINDS[name].name;
      marks.append(mark);
    }
    return marks;
  }
  function labelOf(node) {
    if (node.leaf) return `${node.label} ${toldOf(node.leaf)}, ${KINDS[node.leaf.kind].name}`;
    const counts = kindsOf(node).map((name) => `${node.counts[name]} ${KINDS[name].name}`);
    return `${node.label}: ${counts.join(", ")}`;
  }

  /* What is selected */

  function linksUnder(node, side) {
    if (node.leaf) return node.leaf.links.filter((link) => link.isShown);
    const found = new Set();
    const rest = [node];
    while (rest.length) {
      const some = rest.pop();
      if (some.leaf?.isShown) {
        for (const link of some.leaf.links) if (link.isShown) found.add(link);
      }
      for (let n = some.below.length - 1; n >= 0; n--) rest.push(some.below[n]);
    }
    return [...found];
  }
  const keysOf = (link, side) => leavesOf(link, side).map((leaf) => leaf.key).join("\n");
  function detail() {
    const node = now.selected;
    element("row").hidden = node === null;
    if (node === null) return;
    element("row-key").textContent = keyOf(node);
    element("row-told").textContent = node.leaf
      ? `${toldOf(node.leaf)}, ${KINDS[node.leaf.kind].name}`
      : kindsOf(node)
          .map((name) => `${whole(node.counts[name])} ${KINDS[name].name}`)
          .join(", ");
    const links = linksUnder(node, now.side);
    const rows = links.slice(0, MAX_PAIRS).map((link) => {
      const row = made("tr");
      row.append(made("td", `kind ${link.kind}`, `${KINDS[link.kind].mark} ${KINDS[link.kind].name}`));
      row.append(made("td", "", keysOf(link, 0)), made("td", "", keysOf(link, 1)));
      row.append(made("td", "", [link.evidence, link.steps].filter(Boolean).join("; ")));
      row.append(made("td", "", link.told.join("\n")));
      return row;
    });
    const table = element("pairs");
    table.hidden = !rows.length;
    const head = made("tr");
    const titles = ["", "source", "template", "evidence, steps"];
    if (links.some((link) => link.told.length)) titles.push("rules that would follow");
    for (const title of titles) head.append(made("th", "", title));
    if (titles.length < 5) for (const row of rows) row.lastElementChild.remove();
    table.tHead.replaceChildren(head);
    table.tBodies[0].replaceChildren(...rows);
    const rest = links.length - rows.length;
    element("more").textContent = rest ? `and ${whole(rest)} more` : "";
  }

  /* Drawing */

  function redraw() {
    for (const tree of trees) {
      tree.drawn = "";
      drawRows(tree);
    }
    drawLines();
  }
  function relay() {
    trees.forEach(lay);
    joinRows();
    redraw();
  }
  function refilter() {
    choose();
    const isNarrow = now.words.length > 0 || now.hidden.size > 0;
    for (const tree of trees) {
      count(tree);
      unfold(tree, isNarrow ? Infinity : UNFOLDED_ROWS);
    }
    if (now.selected && !now.selected.isShown) now.selected = null;
    relay();
    detail();
    const [shown, all] = [(leaf) => leaf.isShown, () => true].map((test) =>
      page.sides.map((side) =>
        side.leaves.reduce((sum, leaf) => sum + (test(leaf) ? leaf.count : 0), 0),
      ),
    );
    element("found").textContent = isNarrow
      ? `${whole(shown[0])} of ${whole(all[0])} leaves, and ${whole(shown[1])} of ${whole(all[1])}`
      : "";
  }
  function see(tree, node, y) {
    const top = node.row * ROW;
    if (y !== undefined) tree.panel.scrollTop = top - y;
    else if (top < tree.panel.scrollTop) tree.panel.scrollTop = top;
    else if (top + ROW > tree.panel.scrollTop + tree.panel.clientHeight) {
      tree.panel.scrollTop = top + ROW - tree.panel.clientHeight;
    }
  }
  function select(side, node) {
    Object.assign(now, { side, selected: node });
    see(trees[side], node);
    const line = lines.find(isSelected);
    if (line) {
      const other = line.rows[1 - side];
      const y = other.row * ROW - trees[1 - side].panel.scrollTop;
      if (y < 0 || y + ROW > trees[1 - side].panel.clientHeight) {
        see(trees[1 - side], other, node.row * ROW - trees[side].panel.scrollTop);
      }
    }
    redraw();
    detail();
  }
  function toggle(node, isOpen) {
    if (!node.below.length) return;
    node.isOpen = isOpen ?? !node.isOpen;
    relay();
  }
  function goAcross() {
    const line = lines.find(isSelected);
    if (!line) return;
    const side = 1 - now.side;
    select(side, line.rows[side]);
    trees[side].panel.focus({ preventScroll: true });
  }

  /* Keyboard and pointer */

  function press(tree, event) {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const at = tree.side === now.side && now.selected?.row >= 0 ? now.selected : null;
    const page = Math.max(1, Math.floor(tree.panel.clientHeight / ROW) - 1);
    const moves = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page };
    const last = tree.rows.length - 1;
    let next = null;
    if (!tree.rows.length) return;
    if (event.key in moves) {
      const row = at ? at.row + moves[event.key] : 0;
      next = tree.rows[Math.min(last, Math.max(0, row))];
    } else if (event.key === "Home") next = tree.rows[0];
    else if (event.key === "End") next = tree.rows[last];
    else if (at && event.key === "ArrowRight") {
      if (at.below.length && !at.isOpen) toggle(at, true);
      else next = at.below.find((child) => child.isShown) ?? null;
    } else if (at && event.key === "ArrowLeft") {
      if (at.isOpen) toggle(at, false);
      else if (at.above !== tree.root) next = at.above;
    } else if (at && event.key === "Enter") goAcross();
    else if (at && event.key === " ") toggle(at);
    else return;
    event.preventDefault();
    if (next) select(tree.side, next);
  }
  for (const tree of trees) {
    tree.panel.addEventListener("keydown", (event) => press(tree, event));
    tree.panel.addEventListener("scroll", () => {
      drawRows(tree);
      drawLines();
    });
    tree.panel.addEventListener("click", (event) => {
      const item = event.target.closest(".item");
      if (!item) return;
      const node = tree.root.order[Number(item.id.split("-")[1])];
      if (event.target.tagName === "I") toggle(node);
      select(tree.side, node);
    });
    tree.panel.addEventListener("dblclick", (event) => {
      const item = event.target.closest(".item");
      if (item && event.target.tagName !== "I") {
        toggle(tree.root.order[Number(item.id.split("-")[1])]);
      }
    });
  }
  document.addEventListener("keydown", (event) => {
    if (event.key === "/" && event.target !== element("search")) {
      event.preventDefault();
      element("search").focus();
    }
  });
  element("search").addEventListener("input", (event) => {
    now.words = event.target.value.toLowerCase().split(/\s+/).filter(Boolean);
    refilter();
  });
  for (const [id, limit] of [["fold", 0], ["unfold", Infinity]]) {
    element(id).addEventListener("click", () => {
      for (const tree of trees) unfold(tree, limit);
      relay();
    });
  }

  /* What is shown, which is the legend as well: a sample of the line, the name, how many leaves */

  function sample(kind) {
    const svg = document.createElementNS(SVG, "svg");
    const line = document.createElementNS(SVG, "path");
    svg.setAttribute("aria-hidden", "true");
    line.setAttribute("d", "M0,5 H34");
    line.setAttribute("class", kind);
    svg.append(line);
    return svg;
  }
  const totals = {};
  for (const side of page.sides) {
    for (const leaf of side.leaves) {
      if (leaf.kind !== "only" && side !== page.sides[0]) continue;
      totals[leaf.kind] = (totals[leaf.kind] ?? 0) + leaf.count;
    }
  }
  for (const name of NAMES.filter((kind) => totals[kind])) {
    const button = made("button", name);
    button.type = "button";
    button.setAttribute("aria-pressed", "true");
    if (name !== "only") button.append(sample(name));
    const title = name === "only" ? "only in one" : KINDS[name].name;
    button.append(`${KINDS[name].mark} ${title}: ${whole(totals[name])}`);
    button.addEventListener("click", () => {
      const isHidden = !now.hidden.delete(name);
      if (isHidden) now.hidden.add(name);
      button.setAttribute("aria-pressed", String(!isHidden));
      refilter();
    });
    element("kinds").append(button);
  }

  const dark = matchMedia("(prefers-color-scheme: dark)");
  element("theme").addEventListener("click", () => {
    const chosen = document.documentElement.dataset.theme;
    const isDark = chosen ? chosen === "dark" : dark.matches;
    document.documentElement.dataset.theme = isDark ? "light" : "dark";
  });
  new ResizeObserver(redraw).observe(element("trees"));
  refilter();
})();
