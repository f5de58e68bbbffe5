"use strict";
// What the page does beyond being read: a leaderboard that sorts and filters, and live plots.
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];

  const made = (name, properties = {}, ...children) => {
    const element = Object.assign(document.createElement(name), properties);
    element.append(...children);
    return element;
  };

  // --- leaderboard: sorting ----------------------------------------------------------------------
  // Numbers before texts by their value, texts by their letters; what has no value comes last.
  const compare = (first, second, sign) => {
    const [a, b] = [first.dataset.value, second.dataset.value];
    if (a === undefined || b === undefined) return (a === undefined) - (b === undefined);
    const order = isNaN(a) || isNaN(b) ? a.localeCompare(b, "en", {numeric: true}) : a - b;
    return sign * order;
  };

  const sortable = (table) => {
    const [body] = table.tBodies;
    const original = [...body.rows];
    const heads = all("thead th", table);
    const next = {none: "ascending", ascending: "descending", descending: "none"};
    const sort = (head) => {
      const order = next[head.getAttribute("aria-sort")];
      heads.forEach((one) => one.setAttribute("aria-sort", one === head ? order : "none"));
      const [sign, at, rows] = [order === "descending" ? -1 : 1, head.cellIndex, [...original]];
      if (order !== "none") rows.sort((a, b) => compare(a.cells[at], b.cells[at], sign));
      body.append(...rows);
    };
    heads.forEach((head) => {
      const button = made("button", {type: "button"}, head.textContent);
      button.addEventListener("click", () => sort(head));
      head.setAttribute("aria-sort", "none");
      head.replaceChildren(button);
    });
  };

  // --- leaderboard: filters ----------------------------------------------------------------------
  const chooser = (table, head) => {
    const cells = [...table.tBodies[0].rows].map((row) => row.cells[head.cellIndex]);
    const choices = [...new Set(cells.map((cell) => cell.textContent))];
    if (choices.length < 2) return null;
    const options = choices.map((text) => new Option(text, `=${text}`));
    const select = made("select", {}, new Option("all", ""), ...options);
    return {select, at: head.cellIndex, label: made("label", {}, head.textContent, select)};
  };

  const filterable = (table) => {
    const rows = [...table.tBodies[0].rows];
    const text = made("input", {type: "search", placeholder: "any word of a row"});
    const heads = all("thead th[data-chosen]", table);
    const choosers = heads.map((head) => chooser(table, head)).filter(Boolean);
    const told = made("output", {className: "soft"});
    const show = () => {
      const words = text.value.toLowerCase().split(/\s+/);
      const wanted = (row) =>
        words.every((word) => row.textContent.toLowerCase().includes(word)) &&
        choosers.every(({select, at}) =>
          select.value === "" || select.value === `=${row.cells[at].textContent}`);
      rows.forEach((row) => { row.hidden = !wanted(row); });
      told.value = `${rows.filter((row) => !row.hidden).length} of ${rows.length} rows`;
    };
    const labels = [made("label", {}, "filter", text), ...choosers.map(({label}) => label)];
    const bar = made("div", {className: "filters"}, ...labels, told);
    bar.setAttribute("role", "search");
    bar.setAttribute("aria-label", "Filter the leaderboard");
    bar.addEventListener("input", show);
    table.parentElement.before(bar);
    show();
  };

  all("table.board").forEach((table) => { filterable(table); sortable(table); });

  // --- plots -------------------------------------------------------------------------------------
  const plots = JSON.parse(document.getElementById("plots").textContent);
  const views = new Map();

  const draw = async (place) => {
    const name = place.dataset.plot;
    if (views.has(name)) return;
    views.set(name, null);
    views.set(name, await Bokeh.embed.embed_item(plots[name], place.id));
  };

  // A click on a name mutes its lines in all panels of the plot, or brings them back.
  all(".legend").forEach((legend) => legend.addEventListener("click", ({target: button}) => {
    const drawn = views.get(legend.closest("figure").querySelector("[data-plot]").dataset.plot);
    if (button.tagName !== "BUTTON" || !drawn) return;
    const muted = button.getAttribute("aria-pressed") === "true";
    button.setAttribute("aria-pressed", String(!muted));
    const [{model}] = [...drawn];
    (model.children ?? [model]).flatMap((panel) => panel.renderers)
      .filter((renderer) => renderer.name === button.textContent)
      .forEach((renderer) => { renderer.muted = muted; });
  }));

  // A plot is drawn when the reader comes near it, or prints the page.
  const places = all("[data-plot]");
  const watch = new IntersectionObserver((entries) => {
    const near = entries.filter((entry) => entry.isIntersecting).map((entry) => entry.target);
    near.forEach((place) => { watch.unobserve(place); draw(place); });
  }, {rootMargin: "600px"});
  places.forEach((place) => watch.observe(place));
  addEventListener("beforeprint", () => places.forEach(draw));
})();
