// What the page of the machine and the figures in the chapters are made of.
{
const make = (tag, about = {}, ...children) => {
  const element = tag.startsWith("svg:") ? document.createElementNS("http://www.w3.org/2000/svg", tag.slice(4)) : document.createElement(tag)
  for (const [name, value] of Object.entries(about)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value)
    else if (name === "vars") for (const [key, amount] of Object.entries(value)) element.style.setProperty(`--${key}`, amount)
    else if (value === true) element.setAttribute(name, "")
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value)
  }
  element.append(...children.flat().filter(child => child !== null && child !== undefined))
  return element
}

// ---- Words for numbers

const percent = share => share >= 0.995 ? "100 %" : share >= 0.0995 ? `${Math.round(100 * share)} %` : share >= 0.001 ? `${(100 * share).toFixed(1)} %` : share > 0 ? "<0.1 %" : "0 %"
const short = number => (Math.abs(number) >= 100 ? number.toFixed(0) : Math.abs(number) >= 10 ? number.toFixed(1) : number.toFixed(2)).replace("-", "−")
const sizeOf = x => Math.sqrt(x.reduce((sum, value) => sum + value * value, 0) / x.length)   // root mean square
const summary = x => `${x.length} numbers of size ${short(sizeOf(x))}, from ${short(x.reduce((a, b) => Math.min(a, b)))} to ${short(x.reduce((a, b) => Math.max(a, b)))}`

function visible(bytes) {   // a token as it can be seen
  let text
  try { text = new TextDecoder("utf-8", {fatal: true, ignoreBOM: true}).decode(bytes) }
  catch { return Array.from(bytes, byte => `‹${byte.toString(16).padStart(2, "0")}›`).join("") }
  return text.replaceAll(" ", "·").replaceAll("\n", "⏎").replaceAll("\t", "⇥").replace(/[\p{Cc}\p{Cf}\p{Z}]/gu, letter => `‹${letter.codePointAt(0).toString(16)}›`)
}
const spoken = text => text.replaceAll("·", "space ").replaceAll("⏎", "newline ")

// ---- Pictures of numbers. Blue is above zero and red below; both can be seen on white and on black.

const BLUE = [31, 135, 201], RED = [213, 94, 0]

function paint(canvas, columns, rows, valueAt, top) {
  canvas.width = columns
  canvas.height = rows
  const image = new ImageData(columns, rows)
  for (let row = 0, at = 0; row < rows; row++) for (let column = 0; column < columns; column++, at += 4) {
    const value = valueAt(row, column)
    if (value === undefined) continue
    const [r, g, b] = value < 0 ? RED : BLUE
    image.data.set([r, g, b, 255 * Math.min(1, 0.04 + Math.abs(value) / top)], at)
  }
  canvas.getContext("2d").putImageData(image, 0, 0)
}

const tip = make("div", {class: "alive tip", hidden: true, "aria-hidden": "true"})
function tells(canvas, words) {   // what lies under the pointer
  canvas.addEventListener("pointermove", event => {
    const box = canvas.getBoundingClientRect()
    const column = Math.floor((event.clientX - box.left) / box.width * canvas.width), row = Math.floor((event.clientY - box.top) / box.height * canvas.height)
    const said = words(row, column)
    tip.hidden = !said
    tip.textContent = said ?? ""
    document.body.append(tip)
    tip.style.left = `${Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8)}px`
    tip.style.top = `${event.clientY + 18}px`
  })
  canvas.addEventListener("pointerleave", () => { tip.hidden = true })
}

function strip(x, label, what = "feature") {   // a vector, cell by cell
  const columns = Math.min(x.length, x.length > 256 ? 88 : 64), rows = Math.ceil(x.length / columns)
  const top = Math.max(1e-6, x.reduce((most, value) => Math.max(most, Math.abs(value)), 0))
  const canvas = make("canvas", {class: "strip", role: "img", "aria-label": `${label}: ${summary(x)}`, vars: {columns, rows}})
  paint(canvas, columns, rows, (row, column) => x[row * columns + column], top)
  tells(canvas, (row, column) => {
    const at = row * columns + column
    return x[at] === undefined ? null : `${what} ${at}: ${x[at].toFixed(3).replace("-", "−")}`
  })
  return canvas
}

// Roots of the shares, so that small ones can be told from none.
function map(rows, label, words, chosen = -1) {   // of each token, how it shares its look back
  const canvas = make("canvas", {class: "map", role: "img", "aria-label": label})
  paint(canvas, rows.length, rows.length, (row, column) => column > row ? undefined : Math.sqrt(rows[row][column]) * (chosen < 0 || row === chosen ? 1 : 0.6), 0.9)
  if (words) tells(canvas, (row, column) => column <= row && rows[row] ? words(row, column) : null)
  return canvas
}

function dials(before, after, angles, label) {   // pairs of features, as hands of clocks
  const pairs = angles.length, longest = Math.max(1e-6, ...Array.from({length: pairs}, (_, i) => Math.hypot(before[2 * i], before[2 * i + 1])))
  const hand = (x, i, kind) => {   // roots, so that a small pair can be seen beside a large one
    const length = Math.hypot(x[2 * i], x[2 * i + 1]), scale = length ? 9.4 * Math.sqrt(length / longest) / length : 0
    return make("svg:line", {x1: 0, y1: 0, x2: (x[2 * i] * scale).toFixed(2), y2: (-x[2 * i + 1] * scale).toFixed(2), class: kind})
  }
  const around = Array.from({length: pairs}, (_, i) => make("svg:svg", {viewBox: "-11 -11 22 22", "aria-hidden": "true"}, make("svg:circle", {r: 10}), hand(before, i, "before"), hand(after, i, "after")))
  return make("div", {class: "dials", role: "img", "aria-label": label}, around)
}

// ---- Tokens, bars, sliders

const colour = at => `t${at % 6}`

function bars(rows) {   // label, share, and perhaps another share to compare with
  const most = Math.max(1e-9, ...rows.map(row => Math.max(row.share, row.was ?? 0)))
  return make("ol", {class: "bars"}, rows.map(({label, share, was, note, kind}) => make("li", {class: kind ?? ""},
    make("span", {class: "token"}, label),
    make("span", {class: "bar", vars: {share: share / most, was: (was ?? 0) / most}}, make("i", {class: "now"}), was === undefined ? null : make("i", {class: "was"})),
    make("span", {class: "amount"}, note ?? percent(share)))))
}

const cut = share => share ? {} : {kind: "out", note: "cut"}

function slider(label, {min, max, step, value, say = String}, changed) {
  const told = make("output", {}, say(value))
  const input = make("input", {type: "range", min, max, step, value, oninput: () => {
    told.textContent = say(Number(input.value))
    input.setAttribute("aria-valuetext", told.textContent)
    changed(Number(input.value))
  }})
  input.setAttribute("aria-valuetext", told.textContent)
  return make("label", {class: "slider"}, make("span", {}, label), input, told)
}

function choice(label, names, chosen, changed) {   // one of several, side by side
  const group = `choice-${++choice.count}`
  return make("fieldset", {class: "choice"}, make("legend", {}, label), names.map((name, i) =>
    make("label", {}, make("input", {type: "radio", name: group, value: i, checked: i === chosen, onchange: () => changed(i)}), make("span", {}, name))))
}
choice.count = 0

const SAMPLING = {
  temperature: {label: "temperature", min: 0, max: 2, step: 0.05, value: 0.8, say: value => value ? value.toFixed(2) : "0, greedy"},
  top_k: {label: "top-k", min: 0, max: 50, step: 1, value: 0, say: value => value || "all"},
  top_p: {label: "top-p", min: 0, max: 1, step: 0.01, value: 0.9, say: value => value < 1 ? value.toFixed(2) : "all"},
  min_p: {label: "min-p", min: 0, max: 0.5, step: 0.01, value: 0, say: value => value ? value.toFixed(2) : "none"},
}
const samplers = (how, names, changed) => names.map(name => slider(SAMPLING[name].label, {...SAMPLING[name], value: how[name]}, value => { how[name] = value; changed() }))

function lot(shares, chance, label) {   // the line from 0 to 1 that the next token is drawn on
  let upto = 0
  const parts = []
  for (let id = 0; id < shares.length; id++) {
    if (shares[id] > 1 / 4000) parts.push(make("svg:rect", {x: upto, y: 0, width: shares[id], height: 1, class: colour(parts.length)}))
    upto += shares[id]
  }
  const mark = chance === null ? null : make("svg:line", {x1: chance, x2: chance, y1: -0.6, y2: 1.6, "vector-effect": "non-scaling-stroke"})
  return make("svg:svg", {class: "lot", viewBox: "0 -0.6 1 2.2", preserveAspectRatio: "none", role: "img", "aria-label": label}, parts, mark)
}

// ---- The demo model, fetched when it is asked for

function script(address) {
  return new Promise((done, failed) => document.head.append(make("script", {src: address, onload: done, onerror: () => failed(new llm.Refused(`${address} could not be fetched.`))})))
}
const fetched = {}
const fetchOnce = address => fetched[address] ??= script(address).catch(error => {
  delete fetched[address]   // so that it can be tried again
  throw error
})
const unpacked = packed => Uint8Array.from(atob(packed), letter => letter.charCodeAt(0)).buffer

async function demoTokenizer(folder) {
  await fetchOnce(`${folder}demo_tokenizer.js`)
  return llm.readTokenizer(JSON.stringify(llm.demo_tokenizer))
}
async function demoMachine(folder) {
  await fetchOnce(`${folder}demo_model.js`)
  const machine = new llm.Machine(), buffer = unpacked(llm.demo_model)
  return Object.assign(machine, await machine.ask("load", {buffer}, [buffer]))
}

function latest(work) {   // run `work`, and again if it was asked for meanwhile; never twice at once
  let running = null, again = false
  async function untilDone() {
    while (again) { again = false; await work() }
    running = null
  }
  return () => {
    again = true
    return running ??= untilDone()
  }
}

globalThis.llm = {...globalThis.llm, make, percent, short, sizeOf, visible, spoken, strip, map, dials, colour, bars, cut, slider, choice, samplers, lot, demoTokenizer, demoMachine, fetchOnce, latest}
}
