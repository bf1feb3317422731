
"use strict";
// Extras only: one micro-batch at a time, and what a token is, by mouse or by keyboard.
const articles = [...document.querySelectorAll(".batch")];
const links = [...document.querySelectorAll("nav a")];
const [previous, next] = ["previous", "next"].map((id) => document.getElementById(id));
const said = document.getElementById("said");
let current = 0;

function show(number) {
  current = Math.max(0, Math.min(articles.length - 1, number));
  articles.forEach((article, index) => { article.hidden = index !== current; });
  links.forEach((link, index) => {
    if (index === current) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  });
  previous.disabled = current === 0;
  next.disabled = current === articles.length - 1;
}

function tell(token) {
  document.querySelector(".t.here")?.classList.remove("here");
  said.hidden = !token;
  if (!token) return;
  token.classList.add("here");
  said.textContent = token.title + " · " + token.closest(".example").querySelector("h5").firstChild.textContent.trim();
}

const followed = () => articles.findIndex((article) => "#" + article.id === location.hash);
addEventListener("hashchange", () => { if (followed() >= 0) show(followed()); });
previous.addEventListener("click", () => show(current - 1));
next.addEventListener("click", () => show(current + 1));

for (const group of document.querySelectorAll(".example .tokens")) {
  group.tabIndex = 0;
  group.addEventListener("focus", () => tell(group.querySelector(".t.here") ?? group.querySelector(".t")));
  group.addEventListener("blur", () => tell(null));
  group.addEventListener("mouseover", (event) => tell(event.target.closest(".t")));
  group.addEventListener("click", (event) => tell(event.target.closest(".t")));
  group.addEventListener("keydown", (event) => {
    const here = group.querySelector(".t.here");
    const step = { ArrowRight: "nextElementSibling", ArrowLeft: "previousElementSibling" }[event.key];
    if (event.key === "Escape") tell(null);
    if (!step) return;
    event.preventDefault();
    tell(here ? here[step] ?? here : group.querySelector(".t"));
  });
}
previous.hidden = next.hidden = articles.length < 2;
document.querySelector(".hint").hidden = false;
if (articles.length) show(Math.max(0, followed()));
