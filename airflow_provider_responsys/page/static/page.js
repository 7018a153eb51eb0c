"use strict";

// Airflow's theme switch is kept in this storage; absent or "system" follows the computer.
const dark = matchMedia("(prefers-color-scheme: dark)");

function followTheme() {
  let chosen = null;
  try {
    chosen = localStorage.getItem("theme");
  } catch {
    // storage is closed: follow the computer
  }
  const fixed = chosen === "light" || chosen === "dark";
  document.documentElement.dataset.theme = fixed ? chosen : dark.matches ? "dark" : "light";
}

followTheme();
dark.addEventListener("change", followTheme);
addEventListener("storage", followTheme);

// Airflow shows this page in a sandboxed frame, out of which a plain link does not lead: a link outside does.
addEventListener("click", (event) => {
  const link = event.target.closest("a[data-airflow]");
  if (!link || parent === window) return;
  event.preventDefault();
  const outside = parent.document.createElement("a");
  outside.href = link.href;
  parent.document.body.append(outside);
  outside.click();
  outside.remove();
});

addEventListener("click", (event) => {
  const button = event.target.closest("button[data-reveal]");
  if (!button) return;
  const input = document.getElementById(button.dataset.reveal);
  const seen = input.type === "password";
  input.type = seen ? "text" : "password";
  button.textContent = seen ? "Hide" : "Show";
  button.setAttribute("aria-pressed", String(seen));
});

async function loaded(address, options) {
  const answer = await fetch(address, { headers: { Accept: "text/html" }, cache: "no-store", ...options });
  return new DOMParser().parseFromString(await answer.text(), "text/html");
}

// A look-up is fetched, so that what was typed is in no history of the browser.
addEventListener("submit", async (event) => {
  const form = event.target.closest("form[data-look-up]");
  if (!form) return;
  event.preventDefault();
  const result = document.getElementById("result");
  result.setAttribute("aria-busy", "true");
  try {
    const found = await loaded(form.action, { method: "POST", body: new URLSearchParams(new FormData(form)) });
    const answer = found.getElementById("result") || found.querySelector("main");
    result.replaceChildren(...answer.childNodes);
  } catch {
    result.textContent = "Airflow did not answer. Try again.";
  } finally {
    result.removeAttribute("aria-busy");
  }
});

function showFor(select) {
  for (const part of document.querySelectorAll("[data-for]")) part.hidden = part.dataset.for !== select.value;
}

addEventListener("change", (event) => {
  if (event.target.matches("form[data-look-up] select")) showFor(event.target);
});

// While a push runs, its part of the page is replaced; the place that was scrolled to, and the focus, stay.
const FOCUSABLE = "a, button, [tabindex]";

async function refresh() {
  const live = document.getElementById("live");
  if (!live || !live.dataset.live) return;
  if (!document.hidden) {
    try {
      const fresh = (await loaded(location.href)).getElementById("live");
      if (fresh) {
        const scrolled = [...live.querySelectorAll(".wide")].map((part) => part.scrollLeft);
        const focus = [...live.querySelectorAll(FOCUSABLE)].indexOf(document.activeElement);
        live.replaceWith(fresh);
        fresh.querySelectorAll(".wide").forEach((part, place) => (part.scrollLeft = scrolled[place] || 0));
        fresh.querySelectorAll(FOCUSABLE)[focus]?.focus({ preventScroll: true });
      }
    } catch {
      // Airflow restarts, or the network is away: the next time tells
    }
  }
  setTimeout(refresh, Number(live.dataset.live) * 1000);
}

addEventListener("DOMContentLoaded", () => {
  for (const button of document.querySelectorAll("button[data-reveal]")) button.hidden = false;
  const select = document.querySelector("form[data-look-up] select");
  if (select) showFor(select);
  const live = document.getElementById("live");
  if (live && live.dataset.live) setTimeout(refresh, Number(live.dataset.live) * 1000);
});
