"use strict";
(() => {
  const page = JSON.parse(document.getElementById("page").textContent);
  const element = (id) => document.getElementById(id);

  // What a cell can be. The first ones are plain colours, the last two are log scales.
  const STATES = {
    equal: { name: "equal", mark: "" },
    unread: { name: "same shape and type", mark: "" },
    missing: { name: "only in a", mark: "−" },
    extra: { name: "only in b", mark: "+" },
    shape: { name: "shape differs", mark: "S" },
    dtype: { name: "dtype differs", mark: "D" },
    infinite: { name: "NaN or infinite on one side", mark: "∞" },
    within: { name: "within tolerance", mark: "" },
    beyond: { name: "beyond tolerance", mark: "" },
  };
  const PLAIN = Object.keys(STATES).filter((state) => state !== "within" && state !== "beyond");
  const RAMP_FROM = { within: 8, beyond: 19 };
  const RAMP_SIZE = 10;
  const LAST = RAMP_FROM.beyond + RAMP_SIZE;
  const PALETTES = {
    light: {
      page: "#ffffff", ink: "#1b1f26", dim: "#5b6472", line: "#d9dde3", bar: "#2f6fb5",
      equal: "#e7eaee", unread: "#dfe9dd", missing: "#566273", extra: "#15803d",
      shape: "#7a3fb0", dtype: "#0b7f86", infinite: "#c2188a",
      within: ["#cfe3f7", "#86b8e6", "#3c83c8", "#174f8c"],
      beyond: ["#fee391", "#fe9929", "#d94e0f", "#8a1f04"],
    },
    dark: {
      page: "#14171c", ink: "#e6e8ec", dim: "#9aa3b1", line: "#343a45", bar: "#6ea8e6",
      equal: "#272c35", unread: "#26352b", missing: "#8a97a9", extra: "#4cc47c",
      shape: "#b98ae6", dtype: "#45c1c8", infinite: "#ff6ac6",
      within: ["#1b3350", "#23528a", "#3a79bb", "#78b0ea"],
      beyond: ["#8c3608", "#cf5a10", "#f79a35", "#ffe9a6"],
    },
  };
  const MONO = 'ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace';
  const MAX_ROWS = 400;
  const MAX_MARKS = 3000;
  const MAX_COLUMNS_WITH_NUMBERS = 12;
  const TABLE_STEP = 200;
  const LOG_2 = Math.log10(2);
  const CONFIG = { displayModeBar: false, responsive: false, showTips: false };

  const now = { words: [], hidden: new Set(), leaf: null, sort: 0, down: false, shown: TABLE_STEP };

  /* Leaves */

  const isNumber = (value) => typeof value === "number";
  const toNumber = (value) => (isNumber(value) ? value : Number(value.replace("inf", "Infinity")));

  function stateOf(leaf) {
    if (leaf.kind && leaf.kind !== "value") return leaf.kind;
    if (!leaf.found) return leaf.kind ? "beyond" : "unread";
    if (leaf.found.infinite) return "infinite";
    if (leaf.kind) return "beyond";
    return leaf.found.max_abs > 0 ? "within" : "equal";
  }

  page.leaves.forEach((leaf, number) => {
    leaf.number = number;
    leaf.state = stateOf(leaf);
    leaf.lower = leaf.key.toLowerCase();
  });

  const inLog = (leaf) => Math.log10(leaf.found.max_abs);

  function rangeOf(state) {
    const found = page.leaves.filter((leaf) => leaf.state === state && leaf.found);
    if (!found.length) return null;
    let low = Infinity;
    let high = -Infinity;
    for (const leaf of found) {
      low = Math.min(low, Math.floor(inLog(leaf)));
      high = Math.max(high, Math.ceil(inLog(leaf)));
    }
    return [low, Math.max(high, low + 1)];
  }
  const RANGES = { within: rangeOf("within"), beyond: rangeOf("beyond") };

  function codeOf(leaf) {
    if (!RAMP_FROM[leaf.state]) return PLAIN.indexOf(leaf.state);
    const [low, high] = RANGES[leaf.state] ?? [0, 1];
    const share = leaf.found ? (inLog(leaf) - low) / (high - low) : 1;
    return RAMP_FROM[leaf.state] + RAMP_SIZE * share;
  }

  const isFound = (leaf) => now.words.every((word) => leaf.lower.includes(word));
  const leavesOf = (row) => row.cells.filter((n) => n !== null).map((n) => page.leaves[n]);

  const KIND_NAMES = { missing: "only in a", extra: "only in b" };
  const kindName = (kind) => KIND_NAMES[kind] ?? kind;

  /* Numbers as text */

  function short(value) {
    if (!isNumber(value)) return value;
    if (value === 0) return "0";
    const size = Math.abs(value);
    return size < 1e-3 || size >= 1e6
      ? value.toExponential(2).replace(/\.?0+e/, "e")
      : String(Number(value.toPrecision(3)));
  }
  const whole = (value) => value.toLocaleString("en-US");
  const place = (worst) => (worst ? `[${worst.join(",")}]` : "");

  function linesOf(leaf) {
    const found = leaf.found;
    const lines = [STATES[leaf.state].name];
    if (leaf.state === "infinite") lines[0] = "beyond tolerance";
    lines.push(leaf.a === leaf.b ? leaf.a : `a: ${leaf.a ?? "none"}, b: ${leaf.b ?? "none"}`);
    if (leaf.values) lines.push(`a: ${leaf.values[0]}, b: ${leaf.values[1]}`);
    if (!found) return lines;
    if (!found.unequal) return lines;
    lines.push(`max |a-b| ${short(found.max_abs)} at ${place(found.worst)}`);
    lines.push(`mean |a-b| ${short(found.mean_abs)}`, `max relative ${short(found.max_rel)}`);
    lines.push(`${beyondText(leaf)} beyond tolerance, ${whole(found.unequal)} not equal`);
    if (found.infinite) lines.push(`${whole(found.infinite)} NaN or infinite on one side`);
    return lines;
  }

  /* Colours */

  function isDark() {
    const chosen = document.documentElement.dataset.theme;
    return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  }
  const palette = () => PALETTES[isDark() ? "dark" : "light"];

  function colorscale(colors) {
    const stops = PLAIN.map((state, code) => [code / LAST, colors[state]]);
    for (const state of ["within", "beyond"]) {
      colors[state].forEach((color, i) => {
        const code = RAMP_FROM[state] + (RAMP_SIZE * i) / (colors[state].length - 1);
        stops.push([code / LAST, color]);
      });
    }
    return stops;
  }

  const channels = (color) => [1, 3, 5].map((at) => parseInt(color.slice(at, at + 2), 16));

  function cellColor(leaf) {
    const colors = palette()[leaf.state];
    if (!RAMP_FROM[leaf.state]) return channels(colors);
    const at = ((codeOf(leaf) - RAMP_FROM[leaf.state]) / RAMP_SIZE) * (colors.length - 1);
    const low = channels(colors[Math.floor(at)]);
    const high = channels(colors[Math.ceil(at)]);
    return low.map((value, i) => value + (high[i] - value) * (at - Math.floor(at)));
  }

  // Dark text on pale cells, pale text on dark ones, by the luminance that WCAG defines.
  function textColor(leaf) {
    const [red, green, blue] = cellColor(leaf).map((value) => (value / 255) ** 2.2);
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.2 ? "#14171c" : "#ffffff";
  }

  function drawLegend() {
    const colors = palette();
    const present = new Set(page.leaves.map((leaf) => leaf.state));
    const entries = Object.keys(STATES).filter((state) => present.has(state));
    element("legend").replaceChildren(...entries.map((state) => legendEntry(state, colors)));
  }

  function legendEntry(state, colors) {
    const entry = document.createElement("div");
    const sample = document.createElement("i");
    const range = RANGES[state];
    if (range) {
      sample.className = "ramp";
      sample.style.background = `linear-gradient(90deg, ${colors[state].join()})`;
      entry.append(`${STATES[state].name}: 1e${range[0]}`, sample, `1e${range[1]}`);
      return entry;
    }
    const color = RAMP_FROM[state] ? colors[state].at(-1) : colors[state];
    sample.style.background = color;
    sample.style.color = isDark() ? "#14171c" : "#ffffff";
    sample.textContent = STATES[state].mark;
    entry.append(sample, STATES[state].name);
    return entry;
  }

  /* The heat maps */

  // Plotly reads some HTML in its labels; a key is none.
  const escaped = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;");
  const shortened = (text) =>
    text.length <= 46 ? text : `${text.slice(0, 15)}…${text.slice(-30)}`;

  const measure = document.createElement("canvas").getContext("2d");
  function widthOf(text) {
    measure.font = `11px ${MONO}`;
    return measure.measureText(text).width;
  }

  const maps = page.sections.map((section) => {
    const heading = document.createElement("h3");
    const box = document.createElement("div");
    box.className = "map";
    const chart = document.createElement("div");
    chart.role = "img";
    box.append(chart);
    element("maps").append(heading, box);
    return { section, heading, box, chart, rows: [] };
  });

  function rowsToDraw(section) {
    const onlyDiffering = element("differing-rows").checked;
    return section.rows.filter((row) => {
      const leaves = leavesOf(row);
      return leaves.some(isFound) && (!onlyDiffering || leaves.some((leaf) => leaf.kind));
    });
  }

  function drawMap(map) {
    const rows = rowsToDraw(map.section);
    map.rows = mostDifferentRows(rows);
    map.heading.hidden = map.box.hidden = !rows.length;
    if (!rows.length) return;
    setHeading(map, rows);
    const size = sizeOf(map);
    Plotly.react(map.chart, [cells(map), marks(map, size)], mapLayout(map, size), CONFIG);
    if (!map.isBound) bindMap(map);
  }

  // In the order in which they came.
  function mostDifferentRows(rows) {
    if (rows.length <= MAX_ROWS) return rows;
    const rankOf = (leaf) => (leaf.kind ? LAST : 0) + codeOf(leaf);
    const rank = (row) => Math.max(...leavesOf(row).map(rankOf));
    const ranked = rows.map((row) => [rank(row), row]).sort((x, y) => y[0] - x[0]);
    const chosen = new Set(ranked.slice(0, MAX_ROWS).map(([, row]) => row));
    return rows.filter((row) => chosen.has(row));
  }

  function setHeading(map, rows) {
    const { section, heading } = map;
    const differing = rows.flatMap(leavesOf).filter((leaf) => leaf.kind).length;
    const layers = section.layers.length;
    const size = layers ? `${counted(rows.length, "parameter")} × ${counted(layers, "layer")}`
      : counted(rows.length, "parameter");
    const note = document.createElement("span");
    note.className = "dim";
    note.textContent = `  ${size}, ${differing ? whole(differing) : "none"} differ`;
    if (rows.length > MAX_ROWS) {
      note.textContent += `; the ${MAX_ROWS} that differ most are drawn, a search finds the others`;
    }
    heading.replaceChildren(section.name, note);
    map.chart.ariaLabel = heading.textContent;
  }
  const counted = (count, noun) => `${whole(count)} ${noun}${count === 1 ? "" : "s"}`;

  function sizeOf(map) {
    const columns = Math.max(map.section.layers.length, 1);
    const labels = map.rows.map((row) => shortened(row.label));
    const left = Math.ceil(Math.max(40, ...labels.map(widthOf))) + 18;
    const room = element("maps").clientWidth - left - 28;
    const cell = Math.max(7, Math.min(columns === 1 ? 90 : 60, Math.floor(room / columns)));
    const numbers = cell >= 56 && columns <= MAX_COLUMNS_WITH_NUMBERS;
    return { columns, labels, left, cell, numbers, top: map.section.layers.length ? 26 : 6 };
  }

  function cells(map) {
    const colors = palette();
    return {
      type: "heatmap",
      z: map.rows.map((row) => row.cells.map((n) => (n === null ? null : codeOf(page.leaves[n])))),
      zmin: 0, zmax: LAST, zauto: false,
      colorscale: colorscale(colors), showscale: false, xgap: 1, ygap: 1,
      hoverinfo: "none", hoverongaps: false,
    };
  }

  function marks(map, size) {
    const found = { x: [], y: [], text: [], color: [] };
    map.rows.forEach((row, y) => row.cells.forEach((number, x) => {
      if (number === null) return;
      const leaf = page.leaves[number];
      const text = markOf(leaf, size);
      if (!text || found.x.length >= MAX_MARKS) return;
      found.x.push(x);
      found.y.push(y);
      found.text.push(text);
      found.color.push(textColor(leaf));
    }));
    return {
      type: "scatter", mode: "text", x: found.x, y: found.y, text: found.text, hoverinfo: "skip",
      textfont: { family: MONO, size: size.cell < 9 ? 8 : 10, color: found.color },
      cliponaxis: false, showlegend: false,
    };
  }

  function markOf(leaf, size) {
    if (size.numbers && RAMP_FROM[leaf.state] && leaf.found) return short(leaf.found.max_abs);
    if (size.numbers && leaf.state === "equal") return "=";
    return STATES[leaf.state].mark;
  }

  function mapLayout(map, size) {
    const colors = palette();
    const rowHeight = 17;
    const axis = { showgrid: false, zeroline: false, fixedrange: true, showline: false, ticks: "" };
    const every = Math.max(1, Math.ceil(26 / size.cell));
    const layers = map.section.layers;
    const labelled = layers.map((_, x) => x).filter((x) => x % every === 0);
    return {
      width: size.left + size.columns * size.cell + 8,
      height: size.top + map.rows.length * rowHeight + 6,
      margin: { l: size.left, r: 8, t: size.top, b: 6, pad: 0 },
      paper_bgcolor: colors.page, plot_bgcolor: colors.page,
      font: { family: MONO, size: 11, color: colors.ink },
      dragmode: false, hovermode: "closest",
      xaxis: {
        ...axis, side: "top", range: [-0.5, size.columns - 0.5], showticklabels: layers.length > 0,
        tickvals: labelled, ticktext: labelled.map((x) => String(layers[x])), tickangle: 0,
      },
      yaxis: {
        ...axis, range: [map.rows.length - 0.5, -0.5],
        tickvals: size.labels.map((_, y) => y), ticktext: size.labels.map(escaped),
        ticklabelstandoff: 5,
      },
      shapes: outline(map),
    };
  }

  // A frame around the selected cell.
  function outline(map) {
    const shapes = [];
    map.rows.forEach((row, y) => row.cells.forEach((number, x) => {
      if (number === null || number !== now.leaf) return;
      shapes.push({
        type: "rect", x0: x - 0.5, x1: x + 0.5, y0: y - 0.5, y1: y + 0.5,
        line: { color: palette().ink, width: 2 },
      });
    }));
    return shapes;
  }

  function bindMap(map) {
    map.isBound = true;
    const numberAt = (point) => map.rows[point.y].cells[point.x];
    map.chart.on("plotly_hover", (event) => {
      const leaf = page.leaves[numberAt(event.points[0])];
      showTip([leaf.key, ...linesOf(leaf)].join("\n"), event.event);
    });
    map.chart.on("plotly_unhover", hideTip);
    map.chart.on("plotly_click", (event) => select(numberAt(event.points[0])));
  }

  function showTip(text, event) {
    const tip = element("tip");
    tip.textContent = text;
    tip.hidden = false;
    const left = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8);
    const below = event.clientY + 18;
    const fits = below + tip.offsetHeight < innerHeight;
    tip.style.left = `${Math.max(4, left)}px`;
    tip.style.top = `${fits ? below : Math.max(4, event.clientY - tip.offsetHeight - 12)}px`;
  }
  const hideTip = () => { element("tip").hidden = true; };

  function drawMaps() {
    element("map-title").textContent = page.compared_values ? "Largest |a-b|" : "Metadata";
    drawLegend();
    maps.forEach(drawMap);
  }

  /* The selected parameter */

  function rowOf(number) {
    for (const section of page.sections) {
      const row = section.rows.find((candidate) => candidate.cells.includes(number));
      if (row) return { section, row };
    }
    return null;
  }

  function select(number) {
    hideTip();
    now.leaf = number;
    drawLeaf();
    for (const map of maps) {
      if (map.isBound && map.rows.length) Plotly.relayout(map.chart, { shapes: outline(map) });
    }
    drawTable();
    element("leaf").scrollIntoView({ block: "nearest" });
  }

  function drawLeaf() {
    element("leaf").hidden = now.leaf === null;
    if (now.leaf === null) return;
    const leaf = page.leaves[now.leaf];
    const { section, row } = rowOf(now.leaf);
    const layers = leavesOf(row).filter((other) => other.found);
    element("whole-label").hidden = layers.length < 2;
    element("whole-label").lastElementChild.textContent = `all ${layers.length} layers together`;
    const together = layers.length > 1 && element("whole").checked;
    element("leaf-key").textContent = together ? `${section.name}[*].${row.label}` : leaf.key;
    element("leaf-numbers").textContent = (together ? [] : linesOf(leaf)).join(" · ");
    drawHistogram((together ? layers : [leaf]).map((one) => one.found).filter(Boolean));
  }

  function totals(found) {
    const sum = { count: 0, unequal: 0, infinite: 0, powers: new Map() };
    for (const one of found) {
      sum.count += one.count;
      sum.unequal += one.unequal;
      sum.infinite += one.infinite;
      for (const [power, count] of Object.entries(one.histogram)) {
        sum.powers.set(Number(power), (sum.powers.get(Number(power)) ?? 0) + count);
      }
    }
    return sum;
  }

  function drawHistogram(found) {
    const sum = totals(found);
    const hasBars = sum.unequal > 0 && sum.count > 1;
    element("histogram").hidden = !hasBars;
    element("no-histogram").hidden = hasBars;
    element("no-histogram").textContent = emptyReason(found, sum);
    if (!hasBars) return;
    Plotly.react(element("histogram"), [bars(sum)], histogramLayout(sum), CONFIG);
  }

  function emptyReason(found, sum) {
    if (found.length && sum.unequal) return "A single number has no histogram";
    if (found.length) return `${counted(sum.count, "element")}, all equal`;
    return page.compared_values ? "Its values cannot be compared" : "Values were not compared";
  }

  // One bar per power of two, between a bar of equal elements and one of infinite differences.
  function bars(sum) {
    const powers = [...sum.powers.keys()].sort((p, q) => p - q);
    const ends = endsOf(sum);
    const found = powers.map((power) => ({
      at: (power + 0.5) * LOG_2,
      count: sum.powers.get(power),
      name: `${short(2 ** power)} ≤ |a-b| &lt; ${short(2 ** (power + 1))}`,
    }));
    const equal = sum.count - sum.unequal;
    if (equal) found.unshift({ at: ends.equal, count: equal, name: "equal" });
    if (sum.infinite) {
      found.push({ at: ends.infinite, count: sum.infinite, name: "NaN or infinite on one side" });
    }
    return {
      type: "bar", x: found.map((bar) => bar.at), y: found.map((bar) => bar.count),
      width: found.map(() => LOG_2 * 0.92), marker: { color: palette().bar },
      hovertext: found.map((bar) => `${bar.name}<br>${counted(bar.count, "element")}`),
      hoverinfo: "text", textposition: "none",
    };
  }

  function endsOf(sum) {
    const powers = [...sum.powers.keys()];
    const low = powers.length ? Math.min(...powers) * LOG_2 : -1;
    const high = powers.length ? (Math.max(...powers) + 1) * LOG_2 : 0;
    const gap = Math.max(0.6, (high - low) * 0.06);
    return { low, high, equal: low - gap, infinite: high + gap, gap };
  }

  function histogramLayout(sum) {
    const colors = palette();
    const { low, high, equal, infinite, gap } = endsOf(sum);
    const ticks = decades(low, high);
    const values = [...(sum.unequal < sum.count ? [equal] : []), ...ticks];
    const names = values.map((at) => (at === equal ? "equal" : at ? `1e${at}` : "1"));
    if (sum.infinite) {
      values.push(infinite);
      names.push("NaN, ∞");
    }
    const most = Math.max(sum.count - sum.unequal, sum.infinite, ...sum.powers.values());
    return {
      width: Math.min(900, element("leaf").clientWidth - 34), height: 260,
      margin: { l: 60, r: 10, t: 24, b: 44 }, bargap: 0,
      paper_bgcolor: colors.page, plot_bgcolor: colors.page,
      font: { family: MONO, size: 11, color: colors.ink },
      dragmode: false, hovermode: "closest",
      xaxis: {
        title: { text: "|a-b|" }, tickvals: values, ticktext: names, fixedrange: true,
        range: [equal - gap / 2, infinite + gap / 2], zeroline: false, showgrid: false,
        linecolor: colors.line, showline: true, tickangle: 0,
      },
      yaxis: {
        title: { text: "elements" }, type: "log", dtick: 1, fixedrange: true,
        range: [Math.log10(0.5), Math.log10(most) + 0.15], gridcolor: colors.line,
        tickformat: "~s",
      },
      ...toleranceLine(equal, infinite),
    };
  }

  function decades(low, high) {
    const step = Math.max(1, Math.ceil((high - low) / 12));
    const found = [];
    for (let at = Math.ceil(low); at <= high; at += 1) if (at % step === 0) found.push(at);
    return found;
  }

  function toleranceLine(low, high) {
    const at = Math.log10(page.atol);
    if (!(at > low && at < high)) return {};
    const color = palette().ink;
    return {
      shapes: [{ type: "line", x0: at, x1: at, yref: "paper", y0: 0, y1: 1,
        line: { color, width: 1.5, dash: "dash" } }],
      annotations: [{ x: at, yref: "paper", y: 1, yanchor: "bottom", showarrow: false,
        text: "atol", font: { color } }],
    };
  }

  /* The table */

  const differenceOf = (leaf) => (leaf.kind ? kindName(leaf.kind) : STATES[leaf.state].name);
  const ofB = (leaf) => leaf.values?.[1] ?? (leaf.b === leaf.a ? "=" : leaf.b);
  const statistic = (name) => (leaf) => leaf.found?.unequal ? leaf.found[name] : null;
  const ALL_COLUMNS = [
    { name: "key", style: "key", of: (leaf) => leaf.number, text: (leaf) => leaf.key },
    { name: "difference", style: "state", of: differenceOf },
    { name: "a", of: (leaf) => leaf.values?.[0] ?? leaf.a },
    { name: "b", of: ofB },
    { name: "max |a-b|", of: statistic("max_abs"), number: true },
    { name: "mean |a-b|", of: statistic("mean_abs"), number: true },
    { name: "max relative", of: statistic("max_rel"), number: true },
    { name: "beyond", of: statistic("beyond_tolerance"), text: beyondText, number: true },
    { name: "worst at", of: (leaf) => place(statistic("worst")(leaf)) || null, values: true },
  ];
  const COLUMNS = page.compared_values
    ? ALL_COLUMNS : ALL_COLUMNS.filter((column) => !column.number && !column.values);

  function beyondText(leaf) {
    const found = leaf.found;
    return found?.unequal ? `${whole(found.beyond_tolerance)} of ${whole(found.count)}` : "";
  }

  function drawHead() {
    const row = document.createElement("tr");
    COLUMNS.forEach((column, index) => {
      const cell = document.createElement("th");
      if (column.number) cell.className = "number";
      if (index === now.sort) cell.ariaSort = now.down ? "descending" : "ascending";
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = column.name;
      button.addEventListener("click", () => sortBy(index));
      cell.append(button);
      row.append(cell);
    });
    element("table").tHead.replaceChildren(row);
  }

  // Numbers start with the largest, text with the first.
  function sortBy(index) {
    now.down = index === now.sort ? !now.down : Boolean(COLUMNS[index].number);
    now.sort = index;
    drawTable();
    element("table").tHead.rows[0].cells[index].firstElementChild.focus();
  }

  function compare(x, y) {
    if (x === null || y === null) return (x === null) - (y === null);
    const order = isNumber(x) || COLUMNS[now.sort].number
      ? toNumber(x) - toNumber(y) || 0
      : x.localeCompare(y, "en", { numeric: true });
    return now.down ? -order : order;
  }

  function tableLeaves() {
    const all = element("every-leaf").checked;
    const { of } = COLUMNS[now.sort];
    return page.leaves
      .filter((leaf) => (leaf.kind ? !now.hidden.has(leaf.kind) : all) && isFound(leaf))
      .sort((x, y) => compare(of(x), of(y)) || x.number - y.number);
  }

  function drawTable() {
    drawHead();
    const leaves = tableLeaves();
    const body = element("table").tBodies[0];
    body.replaceChildren(...leaves.slice(0, now.shown).map(tableRow));
    element("table").hidden = !leaves.length;
    element("no-rows").textContent = leaves.length ? "" : noRows();
    const rest = leaves.length - now.shown;
    element("more").hidden = rest <= 0;
    element("more").textContent = `${whole(rest)} more: show the next ${TABLE_STEP}`;
    const found = page.leaves.filter(isFound).length;
    element("found").textContent = now.words.length
      ? `${whole(found)} of ${counted(page.leaves.length, "array")}` : "";
  }

  function noRows() {
    const hasAny = page.leaves.some((leaf) => leaf.kind);
    return hasAny ? "No difference fits the search" : "Nothing differs";
  }

  function tableRow(leaf) {
    const row = document.createElement("tr");
    row.className = leaf.number === now.leaf ? "selected" : "";
    for (const column of COLUMNS) row.append(tableCell(column, leaf));
    return row;
  }

  function tableCell(column, leaf) {
    const cell = document.createElement("td");
    const text = column.text ? column.text(leaf) : short(column.of(leaf) ?? "");
    cell.className = column.number ? "number" : column.style ?? "";
    if (column.name !== "key") {
      cell.textContent = text;
      return cell;
    }
    const button = document.createElement("button");
    button.type = "button";
    for (const part of text.split(/(?<=[.\]])/)) {
      button.append(part, document.createElement("wbr"));
    }
    button.addEventListener("click", () => select(leaf.number));
    cell.append(button);
    return cell;
  }

  function drawKinds() {
    const present = page.kinds.filter(([, count]) => count);
    const buttons = present.map(([kind, count]) => {
      const button = document.createElement("button");
      button.type = "button";
      button.dataset.kind = kind;
      button.textContent = `${kindName(kind)} ${whole(count)}`;
      button.ariaPressed = "true";
      button.addEventListener("click", () => toggleKind(kind, button));
      return button;
    });
    element("kinds").replaceChildren(...buttons);
  }

  function toggleKind(kind, button) {
    if (!now.hidden.delete(kind)) now.hidden.add(kind);
    button.ariaPressed = String(!now.hidden.has(kind));
    drawTable();
  }

  /* The page */

  function afterPause(action) {
    let timer = 0;
    return () => {
      clearTimeout(timer);
      timer = setTimeout(action, 120);
    };
  }

  function draw() {
    drawMaps();
    drawLeaf();
    drawTable();
  }

  function mostDifferent() {
    let best = null;
    const arrays = page.leaves.filter((leaf) => leaf.found?.count > 1);
    const size = (leaf) => toNumber(leaf.found.max_abs);
    for (const leaf of arrays) if (best === null || size(leaf) > size(best)) best = leaf;
    return best && best.number;
  }

  element("search").addEventListener("input", afterPause(() => {
    now.words = element("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    now.shown = TABLE_STEP;
    drawMaps();
    drawTable();
  }));
  element("differing-rows").addEventListener("change", drawMaps);
  element("every-leaf").addEventListener("change", drawTable);
  element("whole").addEventListener("change", drawLeaf);
  element("more").addEventListener("click", () => {
    now.shown += TABLE_STEP;
    drawTable();
  });
  element("theme").addEventListener("click", () => {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
    draw();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  addEventListener("resize", afterPause(draw));

  now.leaf = mostDifferent();
  drawKinds();
  draw();
})();
