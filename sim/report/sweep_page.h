// The parts of the page that are the same for every sweep: how it looks, and what it does. Private to sim/report.
#pragma once

#include <string_view>

namespace dualpipe::detail::report {

// Colours are those of the Gantt chart as a picture (gantt_svg.cpp).
inline constexpr std::string_view page_style = R"css(
:root{--ink:#1b1f24;--soft:#57606a;--faint:#d0d7de;--paper:#fff;--raised:#f6f8fa;--accent:#0550ae;--mem:#8250df;
color-scheme:light dark}
@media(prefers-color-scheme:dark){:root{--ink:#e6edf3;--soft:#9da7b3;--faint:#3d444d;--paper:#0d1117;--raised:#161b22;
--accent:#79c0ff;--mem:#d2a8ff}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1280px;padding:0 16px 48px;background:var(--paper);color:var(--ink);
font:16px/1.5 system-ui,sans-serif}
h1{font-size:1.6rem;margin:24px 0 4px}h2{font-size:1.25rem;margin:40px 0 8px}h3{font-size:1rem;margin:24px 0 4px}
p{margin:4px 0;max-width:75ch}.soft{color:var(--soft)}
.skip{position:absolute;left:-999px}.skip:focus{left:16px;top:8px;background:var(--paper)}
.scroll{overflow-x:auto;border:1px solid var(--faint);border-radius:6px;max-height:70vh}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;font-size:.9rem}
caption{text-align:left;padding:8px;color:var(--soft)}
th,td{padding:4px 10px;text-align:right;white-space:nowrap;border-bottom:1px solid var(--faint)}
th.l,td.l{text-align:left}thead th{position:sticky;top:0;background:var(--raised);padding:0}
#per-rank th,#causes th{padding:6px 10px}
th button{all:unset;box-sizing:border-box;width:100%;padding:6px 10px;cursor:pointer;font-weight:600}
th[aria-sort=ascending] button::after{content:" \2191"}th[aria-sort=descending] button::after{content:" \2193"}
:focus-visible,th button:focus-visible{outline:2px solid var(--accent);outline-offset:-2px}
tr.no td{color:var(--soft)}tr[aria-current=true]{background:var(--raised)}
td button,.bar button,select{font:inherit;font-size:.9rem;color:var(--ink);background:var(--raised);
border:1px solid var(--faint);border-radius:6px;padding:2px 10px;cursor:pointer}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,560px),1fr));gap:16px}
.plots svg{width:100%;height:auto}
label,select{max-width:100%}
.bar{display:flex;flex-wrap:wrap;gap:8px;align-items:center;margin:8px 0}
canvas{display:block;width:100%;border:1px solid var(--faint);border-radius:6px;touch-action:pan-y}
#hover{min-height:1.5em}
.key{display:inline-block;width:12px;height:12px;margin:0 4px 0 0;vertical-align:-1px}
)css";

// Sorts the table.
inline constexpr std::string_view table_script = R"js(
'use strict';
const byId = id => document.getElementById(id);

// The table.
const table = byId('rows');
const body = table.tBodies[0];
const heads = [...table.tHead.rows[0].cells];
heads.forEach((head, column) => {
  head.querySelector('button').addEventListener('click', () => {
    const up = head.getAttribute('aria-sort') !== 'ascending';
    heads.forEach(each => each.setAttribute('aria-sort', 'none'));
    head.setAttribute('aria-sort', up ? 'ascending' : 'descending');
    const value = row => {
      const cell = row.cells[column];
      return 'v' in cell.dataset ? Number(cell.dataset.v) : cell.textContent;
    };
    const sign = up ? 1 : -1;
    const rows = [...body.rows];
    rows.sort((a, b) => {
      const x = value(a), y = value(b);
      return sign * (typeof x === 'number' && typeof y === 'number' ? x - y : String(x).localeCompare(String(y)));
    });
    body.append(...rows);
    byId('said').textContent = `sorted by ${head.textContent.trim()}, ${up ? 'least' : 'most'} first`;
  });
});

)js";

// Draws what is in the element "data", of which there is one at least.
inline constexpr std::string_view chart_script = R"js(
const data = JSON.parse(document.getElementById('data').textContent);
const colors = ['#56b4e9', '#e69f00', '#cc79a7', '#009e73', '#f0e442'];
const names = ['F', 'B', 'I', 'W', 'F&B'];
function timeText(ns) {
  if (ns === 0) return '0';
  const units = [['s', 1e9], ['ms', 1e6], ['µs', 1e3], ['ns', 1]];
  const [unit, size] = units.find(([, s]) => Math.abs(ns) >= s) || units[3];
  return `${Number((ns / size).toPrecision(4))} ${unit}`;
}
function bytesText(bytes) {
  const units = [['GB', 1e9], ['MB', 1e6], ['kB', 1e3], ['B', 1]];
  const [unit, size] = units.find(([, s]) => bytes >= s) || units[3];
  return `${Number((bytes / size).toPrecision(4))} ${unit}`;
}

// The Gantt chart.
const canvas = byId('gantt');
const said = byId('hover');
let shown = null, begin = 0, end = 1, rank = 0, selected = -1;
const left = 56, axis = 28, gap = 4;
const css = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const rowHeight = () => shown.ranks.length > 16 ? 14 : 22;
const stripHeight = () => shown.peak > 0 ? (shown.ranks.length > 16 ? 8 : 16) : 0;
const pitch = () => rowHeight() + stripHeight() + gap;
const plotWidth = () => canvas.clientWidth - left - 8;
const xOf = time => left + (time - begin) / (end - begin) * plotWidth();
const timeOf = x => begin + (x - left) / plotWidth() * (end - begin);
const opText = (r, i) => {
  const ops = shown.ranks[r].ops, [kind, , stage, batch, start, length] = ops.slice(6 * i, 6 * i + 6);
  const times = `${timeText(start)} to ${timeText(start + length)}, ${timeText(length)}`;
  return `rank ${r}: ${names[kind]} of stage ${stage}, micro-batch ${batch}, ${times}`;
};
function firstAfter(ops, time) {
  let low = 0, high = ops.length / 6;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (ops[6 * middle + 4] + ops[6 * middle + 5] > time) high = middle; else low = middle + 1;
  }
  return low;
}
function opAt(r, time) {
  const ops = shown.ranks[r].ops, i = firstAfter(ops, time);
  return i < ops.length / 6 && ops[6 * i + 4] <= time ? i : -1;
}
function drawRow(pen, r) {
  const {ops, memory} = shown.ranks[r], top = r * pitch() + 4, height = rowHeight();
  pen.fillStyle = css('--raised');
  pen.fillRect(left, top, plotWidth(), height);
  for (let i = firstAfter(ops, begin); i < ops.length / 6 && ops[6 * i + 4] < end; ++i) {
    const x = Math.max(left, xOf(ops[6 * i + 4]));
    const width = Math.min(left + plotWidth(), xOf(ops[6 * i + 4] + ops[6 * i + 5])) - x;
    pen.globalAlpha = 1 - 0.55 * ops[6 * i + 1];
    pen.fillStyle = colors[ops[6 * i]];
    pen.fillRect(x, top, Math.max(0.5, width - (width > 3 ? 0.7 : 0)), height);
    pen.globalAlpha = 1;
    if (width > 22 && height > 16) {
      pen.fillStyle = '#10151a';
      pen.fillText(ops[6 * i + 3], x + width / 2, top + height / 2);
    }
    if (r === rank && i === selected) {
      pen.strokeStyle = css('--ink');
      pen.lineWidth = 2;
      pen.strokeRect(x + 1, top + 1, Math.max(1, width - 2), height - 2);
    }
  }
  if (!stripHeight()) return;
  const base = top + height + stripHeight();
  pen.fillStyle = css('--mem');
  pen.beginPath();
  pen.moveTo(left, base);
  let level = 0;
  for (let i = 0; i < memory.length; i += 2) {
    const y = base - (stripHeight() - 2) * memory[i + 1] / shown.peak;
    const x = Math.min(left + plotWidth(), Math.max(left, xOf(memory[i])));
    pen.lineTo(x, base - level);
    level = base - y;
    pen.lineTo(x, y);
  }
  pen.lineTo(left + plotWidth(), base - level);
  pen.lineTo(left + plotWidth(), base);
  pen.fill();
}
function drawAxis(pen, height) {
  const rough = (end - begin) / Math.max(2, plotWidth() / 120), power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find(n => n * power >= rough);
  pen.fillStyle = css('--ink');
  pen.strokeStyle = css('--faint');
  pen.lineWidth = 1;
  for (let t = Math.ceil(begin / step) * step; t <= end; t += step) {
    pen.beginPath();
    pen.moveTo(xOf(t), 0);
    pen.lineTo(xOf(t), height - axis + 4);
    pen.stroke();
    pen.fillText(timeText(t), Math.min(xOf(t), canvas.clientWidth - 24), height - 12);
  }
}
function draw() {
  if (!shown) return;
  const height = shown.ranks.length * pitch() + axis + 4, scale = window.devicePixelRatio || 1;
  canvas.style.height = `${height}px`;
  canvas.width = Math.round(canvas.clientWidth * scale);
  canvas.height = Math.round(height * scale);
  const pen = canvas.getContext('2d');
  pen.scale(scale, scale);
  pen.font = '12px system-ui, sans-serif';
  pen.textAlign = 'center';
  pen.textBaseline = 'middle';
  drawAxis(pen, height);
  shown.ranks.forEach((_, r) => {
    drawRow(pen, r);
    pen.fillStyle = css('--ink');
    pen.textAlign = 'right';
    pen.fillText(r === rank ? `▸ ${r}` : r, left - 8, r * pitch() + 4 + rowHeight() / 2);
    pen.textAlign = 'center';
  });
  canvas.dataset.begin = begin;
  canvas.dataset.end = end;
}
function view(from, to) {
  const length = Math.min(shown.makespan, Math.max(shown.makespan / 5000, to - from));
  begin = Math.min(Math.max(0, from), shown.makespan - length);
  end = begin + length;
  draw();
}
function zoom(factor, about = (begin + end) / 2) {
  view(about - (about - begin) * factor, about + (end - about) * factor);
}
const pan = share => view(begin + share * (end - begin), end + share * (end - begin));
const actions = {in: () => zoom(0.5), out: () => zoom(2), left: () => pan(-0.3), right: () => pan(0.3),
                 all: () => view(0, shown.makespan)};
document.querySelectorAll('[data-do]').forEach(each => {
  each.addEventListener('click', () => actions[each.dataset.do]());
});

function choose(r, op) {
  rank = Math.min(Math.max(0, r), shown.ranks.length - 1);
  const ops = shown.ranks[rank].ops;
  selected = Math.min(Math.max(0, op), ops.length / 6 - 1);
  const start = ops[6 * selected + 4];
  if (start < begin || start > end) view(start - (end - begin) / 2, start + (end - begin) / 2); else draw();
  said.textContent = opText(rank, selected);
}
// Of another rank, what is on the left of the picture.
function chooseRank(r) {
  const next = Math.min(Math.max(0, r), shown.ranks.length - 1);
  choose(next, firstAfter(shown.ranks[next].ops, begin));
}
canvas.addEventListener('keydown', event => {
  const keys = {'+': actions.in, '=': actions.in, '-': actions.out, '0': actions.all, Home: actions.all,
                ArrowLeft: actions.left, ArrowRight: actions.right,
                ArrowUp: () => chooseRank(rank - 1), ArrowDown: () => chooseRank(rank + 1),
                n: () => choose(rank, selected + 1), p: () => choose(rank, selected - 1)};
  if (!keys[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  keys[event.key]();
});
canvas.addEventListener('wheel', event => {
  if (document.activeElement !== canvas && !event.ctrlKey) return;  // else the page could not be scrolled past it
  event.preventDefault();
  zoom(event.deltaY > 0 ? 1.25 : 0.8, timeOf(event.offsetX));
}, {passive: false});
let drag = null;
canvas.addEventListener('pointerdown', event => {
  drag = {x: event.offsetX, begin, end};
  canvas.setPointerCapture(event.pointerId);
});
canvas.addEventListener('pointerup', () => { drag = null; });
canvas.addEventListener('pointermove', event => {
  if (drag) {
    const moved = (drag.x - event.offsetX) / plotWidth() * (drag.end - drag.begin);
    return view(drag.begin + moved, drag.end + moved);
  }
  const r = Math.floor((event.offsetY - 4) / pitch()), time = timeOf(event.offsetX);
  if (r < 0 || r >= shown.ranks.length || event.offsetX < left) return;
  const i = opAt(r, time), {memory} = shown.ranks[r];
  let held = 0;
  for (let at = 0; at < memory.length && memory[at] <= time; at += 2) held = memory[at + 1];
  said.textContent = (i < 0 ? `rank ${r}: idle at ${timeText(time)}` : opText(r, i)) +
    (shown.peak > 0 ? `; ${bytesText(held)} held` : '');
});

function cells(parent, values) {
  const row = parent.insertRow();
  values.forEach((value, i) => {
    const cell = row.insertCell();
    cell.textContent = value;
    if (i === 0) cell.className = 'l';
  });
}
function show(number, scroll) {
  shown = data[number];
  byId('pick').value = number;
  document.querySelectorAll('tr[aria-current]').forEach(each => each.removeAttribute('aria-current'));
  const row = document.querySelector(`tr[data-detail="${number}"]`);
  if (row) row.setAttribute('aria-current', 'true');
  canvas.setAttribute('aria-label', `Gantt chart of ${shown.title}: ${shown.ranks.length} ranks, ` +
    `${timeText(shown.makespan)}. The tables below say the same in numbers.`);
  const perRank = byId('per-rank').tBodies[0], causes = byId('causes').tBodies[0];
  perRank.replaceChildren();
  shown.ranks.forEach((each, r) => cells(perRank, [r, timeText(each.busy), timeText(shown.makespan - each.busy),
    `${(100 * (1 - each.busy / shown.makespan)).toFixed(2)} %`, bytesText(each.peak)]));
  causes.replaceChildren();
  shown.causes.forEach(([cause, ns, share, most]) => {
    cells(causes, [cause, `${(100 * share).toFixed(2)} %`, timeText(ns), most]);
  });
  rank = 0;
  selected = -1;
  said.textContent = '';
  view(0, shown.makespan);
  if (scroll) byId('chart').scrollIntoView();
}
document.querySelectorAll('button[data-show]').forEach(each => {
  each.addEventListener('click', () => show(Number(each.dataset.show), true));
});
byId('pick').addEventListener('change', event => show(Number(event.target.value), false));
window.addEventListener('resize', draw);
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', draw);
show(0, false);
)js";

}  // namespace dualpipe::detail::report
