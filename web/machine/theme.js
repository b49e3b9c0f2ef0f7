// Light or dark, before anything is drawn: as the reader chose on any page, else as the system is.
try {
  const chosen = localStorage.getItem("theme")
  if (chosen) document.documentElement.dataset.theme = chosen
} catch { /* a browser that keeps nothing: as the system is */ }
