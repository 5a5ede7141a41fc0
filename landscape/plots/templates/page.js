"use strict";
const figures = JSON.parse(document.getElementById("figures").textContent);
const config = {responsive: true, displaylogo: false, showSendToCloud: false, plotlyServerURL: ""};
const places = Object.keys(figures).map((id) => document.getElementById(id));
const root = document.documentElement;
const isScene = (key) => /^scene[0-9]*$/.test(key);

function theme(layout) {
  const read = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  const change = {"font.color": read("--ink"), paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)", "modebar.bgcolor": "rgba(0,0,0,0)",
    "modebar.color": read("--soft"), "modebar.activecolor": read("--ink")};
  for (const menu of Object.keys(layout.updatemenus || [])) {
    // plotly draws the button that is pressed in white
    change[`updatemenus[${menu}].font.color`] = "#1b1f23";
    change[`updatemenus[${menu}].bgcolor`] = "#c4cbd3";
  }
  for (const key of Object.keys(layout)) {
    const axes = isScene(key) ? ["xaxis", "yaxis", "zaxis"].map((axis) => key + "." + axis)
      : /^[xy]axis[0-9]*$/.test(key) ? [key] : [];
    for (const axis of axes) {
      change[axis + ".gridcolor"] = read("--rule");
      change[axis + ".linecolor"] = change[axis + ".tickcolor"] = read("--soft");
      if (isScene(key)) { change[axis + ".backgroundcolor"] = read("--tint"); }
    }
  }
  return change;
}

let turning = false;
function follow(place) {
  place.on("plotly_relayout", (change) => {
    const source = Object.keys(change).find((key) => /^scene[0-9]*[.]camera$/.test(key));
    if (!source || turning) { return; }
    turning = true;
    Promise.all(places.map((other) => {
      const cameras = Object.keys(other.layout).filter(isScene)
        .map((key) => [key + ".camera", change[source]]);
      return cameras.length ? Plotly.relayout(other, Object.fromEntries(cameras)) : null;
    })).finally(() => { turning = false; });
  });
}

function setScale(name) {
  root.dataset.scale = name;
  for (const button of document.querySelectorAll("[data-to]")) {
    button.setAttribute("aria-pressed", button.dataset.to === name);
  }
  for (const place of places) {
    const menu = (place.layout.updatemenus || [])[0];
    const found = menu && menu.buttons.find((button) => button.label === name);
    if (found) { Plotly.update(place, ...found.args); }
  }
}

for (const button of document.querySelectorAll("[data-to]")) {
  button.addEventListener("click", () => setScale(button.dataset.to));
}
for (const button of document.querySelectorAll("button[data-colour]")) {
  button.addEventListener("click", () => {
    const shown = button.getAttribute("aria-pressed") !== "false";
    const colour = button.dataset.colour;
    button.setAttribute("aria-pressed", !shown);
    const marks = `svg [style*="${colour}"], .card[data-colour="${colour}"]`;
    for (const mark of document.querySelectorAll(marks)) { mark.classList.toggle("off", shown); }
  });
}
Promise.all(places.map((place) => {
  const figure = figures[place.id];
  return Plotly.newPlot(place, figure.data, figure.layout, config)
    .then(() => Plotly.relayout(place, theme(place.layout)))
    .then(() => follow(place));
})).then(() => root.setAttribute("data-drawn", places.length));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  for (const place of places) { Plotly.relayout(place, theme(place.layout)); }
});
