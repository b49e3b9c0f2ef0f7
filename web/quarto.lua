-- What Quarto understands and pandoc alone does not: numbered figures, tables, equations and sections with
-- references to them, callouts, and links between notebooks. A reference that leads nowhere stops the build.

local kinds = {fig = "Figure", tbl = "Table", eq = "Equation", sec = "Section"}
local names = {note = "Note", tip = "Tip", warning = "Warning", important = "Important", caution = "Caution"}
local page, site, root
local numbers, counts = {}, {}

local function kind_of(id) return kinds[id:match("^(%a+)%-") or ""] and id:match("^%a+") end

local function number(id)
  local kind = kind_of(id)
  counts[kind] = (counts[kind] or 0) + 1
  if numbers[id] then error(page .. ": two things are called " .. id) end
  numbers[id] = counts[kind]
end

local function caption(element, id)   -- "Figure 3: ..."
  local first = element.caption.long[1]
  local prefix = {pandoc.Strong(kinds[kind_of(id)] .. " " .. numbers[id] .. "."), pandoc.Space()}
  if first then for i, inline in ipairs(prefix) do first.content:insert(i, inline) end
  else element.caption.long = {pandoc.Plain(prefix)} end
  return element
end

local function figure(element)
  if kind_of(element.identifier) ~= "fig" then return end
  number(element.identifier)
  return caption(element, element.identifier)
end

local function table_(element)
  if kind_of(element.identifier) ~= "tbl" then return end
  number(element.identifier)
  return caption(element, element.identifier)
end

local function drawing(element)   -- ::: {#fig-name} what is shown, then its caption :::
  if kind_of(element.identifier) ~= "fig" then return end
  local text = element.content:remove()
  return figure(pandoc.Figure(element.content, {long = {pandoc.Plain(text.content)}}, {id = element.identifier}))
end

local function header(element)
  if kind_of(element.identifier) == "sec" then number(element.identifier) end
end

local function equation(inlines)   -- $$...$$ {#eq-name}
  for i = #inlines, 1, -1 do
    local id = inlines[i] and inlines[i].t == "Str" and inlines[i].text:match("^{#(eq%-[%w%-_]+)}")
    local back = id and i > 1 and (inlines[i-1].t == "Math" and 1 or 2)
    if back and inlines[i-back] and inlines[i-back].t == "Math" then
      number(id)
      local tail = inlines[i].text:gsub("^{#eq%-[%w%-_]+}", "")
      local label = pandoc.Span("(" .. numbers[id] .. ")", {class = "eqno"})
      local span = pandoc.Span({inlines[i-back], label}, {id = id, class = "equation"})
      for _ = 0, back do inlines:remove(i - back) end
      inlines:insert(i - back, span)
      if tail ~= "" then inlines:insert(i - back + 1, pandoc.Str(tail)) end
    end
  end
  return inlines
end

local function reference(element)
  local out = pandoc.List()
  for i, citation in ipairs(element.citations) do
    local id = citation.id:gsub("[%.,;:]+$", "")
    if not numbers[id] then error(page .. ": @" .. id .. " refers to nothing on this page") end
    if i > 1 then out:insert(pandoc.Str(", ")) end
    out:insert(pandoc.Link(kinds[kind_of(id)] .. "\u{a0}" .. numbers[id], "#" .. id))
  end
  return out
end

local function callout(element)
  for _, class in ipairs(element.classes) do
    local kind = class:match("^callout%-(%a+)$")
    if kind then
      local head, body = element.content[1], element.content
      local title = element.attributes.title
      if not title and head and head.t == "Header" then title = pandoc.utils.stringify(head); body:remove(1) end
      title = (title or names[kind] or kind):gsub("&", "&amp;"):gsub("<", "&lt;")
      local folds = element.attributes.collapse
      local tag = folds and "details" or "aside"
      local open = tag .. (folds == "false" and " open" or "") .. ' class="callout callout-' .. kind .. '"'
      body:insert(1, pandoc.RawBlock("html", "<" .. open .. ">" .. (folds and "<summary>" or "<p class=\"title\">") .. title .. (folds and "</summary>" or "</p>")))
      body:insert(pandoc.RawBlock("html", "</" .. tag .. ">"))
      return body
    end
  end
end

local function link(element)   -- to a notebook or to one of the pages that are made at build, as to its page; to the published site, as to this one
  local target = element.target
  if target:sub(1, #site) == site then target = root .. target:sub(#site + 1) end
  if not target:match("^%a+:") then
    target = target:gsub("([%w_]+)%.ipynb", function(name) return name:gsub("^%d%d_", "") .. ".html" end):gsub("%.qmd", ".html")
  end
  element.target = target
  return element
end

local function wide(element)   -- a table scrolls by itself, so that a phone's page does not
  return pandoc.Div({element}, {class = "scroll", tabindex = "0"})
end

function Pandoc(doc)
  local meta = function(key) return pandoc.utils.stringify(doc.meta[key]) end
  page, site, root = meta("page"), meta("site-url"), meta("root")
  doc = doc:walk {Figure = figure, Div = drawing, Table = table_, Header = header, Inlines = equation}
  doc = doc:walk {Cite = reference, Div = callout, Link = link}
  return doc:walk {Table = wide}
end
