// Makes one picture of a circuit answer: cards, pinning, the slider. `root` is the element that
// course_utils/display/circuit_view.py writes; everything that is shown stands in it already.
function circuitView(root) {
  const live = document.createElement("div");
  live.className = "cv-live";
  live.innerHTML = root.querySelector("script.cv-source").textContent;
  root.insertBefore(live, root.querySelector(".cv-table"));
  root.dataset.ready = "";

  const stage = live.querySelector(".cv-stage");
  const picture = live.querySelector("svg");
  const nodes = [...live.querySelectorAll(".cv-node")];
  const edges = [...live.querySelectorAll(".cv-edge")];
  const weights = [...live.querySelectorAll(".cv-weight")];
  const cards = [...live.querySelectorAll(".cv-card")];
  const slider = live.querySelector("input[type=range]");
  const count = live.querySelector("output");
  let pinned = null;

  // Light text stands on a dark page: so in JupyterLab, Colab, VS Code and plain pages alike.
  function matchPage() {
    const channels = getComputedStyle(root).color.match(/[\d.]+/g).slice(0, 3).map(Number);
    const light = channels.reduce((sum, channel) => sum + channel, 0) / 3 > 127;
    root.dataset.theme = light ? "dark" : "light";
  }

  // -- cards ----------------------------------------------------------------------------------

  function showCard(i) {
    cards.forEach((card, j) => { card.hidden = j !== i; });
    if (i === null) return;
    matchPage();
    const card = cards[i];
    card.classList.toggle("cv-pinned", i === pinned);
    const here = stage.getBoundingClientRect();
    const own = nodes[i].getBoundingClientRect();
    card.style.maxHeight = `${here.height - 8}px`;
    const [width, height] = [card.offsetWidth, card.offsetHeight];
    const [farRight, lowest] = [Math.max(0, here.width - width), here.height - height - 4];
    const beside = [own.right - here.left + 10, own.left - here.left - width - 10, farRight, 0];
    const middle = own.top - here.top - height / 3;
    const heights = [middle, 4, lowest].map((y) => Math.max(4, Math.min(y, lowest)));
    const places = beside.filter((x) => x >= 0 && x <= farRight)
      .flatMap((x) => heights.map((y) => [x, y]));
    const costs = places.map(([x, y]) => cost(i, here, x, y, width, height));
    const [x, y] = places[costs.indexOf(Math.min(...costs))];
    card.style.left = `${x}px`;
    card.style.top = `${y}px`;
  }

  // What a card at (x, y) would hide: the node itself, and then what is lit up. Near is better.
  function cost(i, here, x, y, width, height) {
    let sum = 0;
    nodes.forEach((node, j) => {
      if (j !== i && !node.classList.contains("cv-on")) return;
      const box = node.getBoundingClientRect();
      const [left, top] = [box.left - here.left, box.top - here.top];
      const hidden = left < x + width && x < left + box.width &&
        top < y + height && y < top + box.height;
      if (hidden) sum += j === i ? 1e7 : 1e4;
      if (j === i) sum += Math.hypot(x + width / 2 - left, y + height / 2 - top);
    });
    return sum;
  }

  // -- what is lit up -------------------------------------------------------------------------

  function light() {
    const least = Number(slider.value);
    const near = new Set(pinned === null ? [] : [pinned]);
    let shown = 0;
    weights.forEach((weight) => { weight.classList.remove("cv-on"); weight.textContent = ""; });
    edges.forEach((edge) => {
      const [source, target] = [Number(edge.dataset.source), Number(edge.dataset.target)];
      const weak = Math.abs(Number(edge.dataset.weight)) < least;
      const on = !weak && pinned !== null && (source === pinned || target === pinned);
      edge.classList.toggle("cv-weak", weak);
      edge.classList.toggle("cv-on", on);
      shown += weak ? 0 : 1;
      if (on) {
        const other = source === pinned ? target : source;
        near.add(other);
        weights[other].textContent = edge.dataset.says;
        weights[other].classList.add("cv-on");
      }
    });
    nodes.forEach((node, i) => {
      node.classList.toggle("cv-on", near.has(i));
      node.setAttribute("aria-pressed", String(i === pinned));
    });
    live.querySelectorAll(".cv-card li[data-weight]").forEach((item) => {
      item.classList.toggle("cv-weak", Math.abs(Number(item.dataset.weight)) < least);
    });
    picture.classList.toggle("cv-lit", pinned !== null);
    count.textContent = `${shown} of ${edges.length} edges`;
    slider.setAttribute("aria-valuetext", `size ${least.toFixed(2)}, ${count.textContent}`);
  }

  function pin(i) {
    pinned = i === pinned ? null : i;
    light();
    showCard(pinned);
  }

  // -- listening ------------------------------------------------------------------------------

  nodes.forEach((node, i) => {
    node.addEventListener("pointerenter", () => { if (pinned === null) showCard(i); });
    node.addEventListener("pointerleave", () => { if (pinned === null) showCard(null); });
    node.addEventListener("focus", () => { if (pinned === null) showCard(i); });
    node.addEventListener("blur", () => { if (pinned === null) showCard(null); });
    node.addEventListener("click", (event) => { event.stopPropagation(); pin(i); });
    node.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      event.stopPropagation();  // JupyterLab would take Enter for "edit this cell"
      pin(i);
    });
  });
  root.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || pinned === null) return;
    event.stopPropagation();
    const was = pinned;
    pin(pinned);
    nodes[was].focus();
  });
  live.querySelectorAll(".cv-card button").forEach((button) => {
    button.addEventListener("click", (event) => {
      event.stopPropagation();
      const other = Number(button.dataset.node);
      pin(other);
      nodes[other].focus({preventScroll: true});
    });
  });
  picture.addEventListener("click", () => { if (pinned !== null) pin(pinned); });
  slider.addEventListener("input", light);
  slider.addEventListener("keydown", (event) => event.stopPropagation());
  root.addEventListener("pointerenter", matchPage);

  matchPage();
  light();
}
