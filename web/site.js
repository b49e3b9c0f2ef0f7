// What the pages that pandoc makes do: folding of the contents, light or dark, search, copying, and what printing needs.
// It is read where the contents end, so that they are folded before they are drawn.
const site = new URL(".", document.currentScript.src)
const book = document.querySelector("nav.book"), toc = document.querySelector("nav.toc details")

// ---- The lists of chapters and of sections: open beside the text where the window is wide

for (const [width, list] of [["60rem", book.firstElementChild], ["85rem", toc]]) {
  if (!list) continue
  const wide = matchMedia(`(min-width: ${width})`)
  const unfold = () => { list.open = wide.matches }
  wide.addEventListener("change", unfold)
  unfold()
}
toc?.addEventListener("click", event => {
  if (event.target.closest("a") && !matchMedia("(min-width: 85rem)").matches) toc.open = false
})
const here = book.querySelector("[aria-current]")
if (here) book.scrollTop = here.offsetTop - book.clientHeight / 2

// ---- Light or dark

document.querySelector("button.theme").addEventListener("click", () => {
  const root = document.documentElement, system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light"
  const next = (root.dataset.theme || system) === "dark" ? "light" : "dark"
  if (next === system) delete root.dataset.theme
  else root.dataset.theme = next
  try {
    if (next === system) localStorage.removeItem("theme")
    else localStorage.setItem("theme", next)
  } catch { /* the choice holds for this page */ }
})

// ---- Search: in titles, headings, prose and code; lessons come first, and all that is about grading last

const STEP = 20, AROUND = 70
const asked = document.querySelector("nav.book input"), found = document.querySelector("nav.book ol")
const count = document.querySelector("nav.book [role=status]")

const folded = text => text.toLowerCase().replaceAll("is", "iz")   // "optimiser" finds "optimizer", and the other way round; the length stays

const AFTER_LESSONS = ["nbs/index.html", "nbs/engine/", "nbs/reference/", "api/", "cn/"]
const room = address => address.includes("grading") ? AFTER_LESSONS.length + 1 : 1 + AFTER_LESSONS.findIndex(start => address.startsWith(start))

let rows = null
function hits(words) {
  rows ??= window.course.map(([address, ...parts], at) => ({address, parts, at, room: room(address), lower: parts.map(folded)}))
  const holding = rows.filter(({lower}) => words.every(word => lower.some(part => part.includes(word))))
  const late = ({room}) => room > AFTER_LESSONS.length
  const titled = ({lower: [title, heading]}) => heading === "" && words.every(word => title.includes(word))   // a page that is about the words
  const worth = ({lower: [title, heading, ...text]}) => {   // title and heading count where they name all words together; then how often the words occur
    const named = words.every(word => title.includes(word) || heading.includes(word))
    const often = Math.min(...words.map(word => text.reduce((sum, part) => sum + part.split(word).length - 1, 0)))
    return named * words.reduce((sum, word) => sum + 40 * title.includes(word) + 30 * heading.includes(word), 0) + Math.min(often, 20)
  }
  for (const row of holding) row.worth = worth(row)
  return holding.sort((a, b) => late(a) - late(b) || titled(b) - titled(a) || a.room - b.room || b.worth - a.worth || a.at - b.at)
}

function marked(text, words) {   // the text, with the words marked in it
  const word = new RegExp(`(${words.map(word => word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&").replaceAll("iz", "i[sz]")).join("|")})`, "i")
  return text.split(word).map((piece, at) => {
    if (at % 2 === 0) return piece
    return Object.assign(document.createElement("mark"), {textContent: piece})
  })
}

function excerpt({parts: [, , prose, code], lower: [, , lowProse, lowCode]}, words) {
  const word = words.find(word => lowProse.includes(word)) || words.find(word => lowCode.includes(word))
  const text = word && !lowProse.includes(word) ? code : prose
  const at = Math.max(0, (word ? folded(text).indexOf(word) : 0) - AROUND)
  const end = at + 2 * AROUND
  return (at ? "… " : "") + text.slice(at, end).trim() + (end < text.length ? " …" : "")
}

function search(limit = STEP) {
  const words = folded(asked.value).split(/\s+/).filter(Boolean)
  if (!words.length || !window.course) { found.replaceChildren(); count.textContent = ""; return }
  const all = hits(words)
  count.textContent = all.length ? `${all.length} ${all.length === 1 ? "place" : "places"}` : "Nothing found"
  found.replaceChildren(...all.slice(0, limit).map(hit => {
    const item = document.createElement("li"), link = document.createElement("a"), said = document.createElement("p")
    const [title, heading] = hit.parts
    link.href = new URL(hit.address, site)
    link.append(...marked(heading ? `${title}: ${heading}` : title, words))
    said.append(...marked(excerpt(hit, words), words))
    item.append(link, said)
    return item
  }))
  if (all.length > limit) {
    const more = Object.assign(document.createElement("button"), {textContent: "Show more", onclick: () => search(limit + STEP)})
    const item = document.createElement("li")
    item.append(more)
    found.append(item)
  }
}
asked.addEventListener("input", () => search())
asked.addEventListener("focus", () => {   // what is searched is fetched when somebody searches
  document.head.append(Object.assign(document.createElement("script"), {src: new URL("search.js", site), onload: () => search()}))
}, {once: true})

// ---- The text, once it is there

function signWhatScrolls() {   // a mark at the right edge of what goes on there
  for (const box of document.querySelectorAll("pre, .scroll, math[display=block]")) {
    const more = () => box.classList.toggle("more", box.scrollLeft + box.clientWidth < box.scrollWidth - 1)
    box.addEventListener("scroll", more, {passive: true})
    new ResizeObserver(more).observe(box)
  }
}

document.addEventListener("DOMContentLoaded", () => {
  for (const wide of document.querySelectorAll("pre, figure, math[display=block]")) wide.setAttribute("tabindex", 0)   // so that the keyboard can scroll it
  for (const block of document.querySelectorAll("div.sourceCode")) {
    const button = document.createElement("button")
    button.textContent = "Copy"
    button.onclick = () => navigator.clipboard.writeText(block.querySelector("code").textContent).then(() => { button.textContent = "Copied" })
    block.append(button)
  }
  signWhatScrolls()
  if (document.querySelector("[data-figure]")) document.head.append(Object.assign(document.createElement("script"), {src: new URL("machine/figures.js", site)}))
})

// ---- Print: with everything unfolded

addEventListener("beforeprint", () => {
  for (const fold of document.querySelectorAll("main details:not([open])")) { fold.open = true; fold.dataset.opened = "" }
})
addEventListener("afterprint", () => {
  for (const fold of document.querySelectorAll("main details[data-opened]")) { fold.open = false; delete fold.dataset.opened }
})
