#!/usr/bin/env python3
"""The page of `dualpipe-sim report --html` in a real browser: no console error, nothing loaded, the table sorts, the
Gantt chart zooms, moves and says what is under the pointer, by mouse and keyboard, wide and narrow, dark and light.

    tests/tools/page_test.py build/release/bin/dualpipe-sim

Exit status 77 where there is no Chromium.
"""
import html
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

BROWSERS = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")

# Runs in the page, and leaves what it found in it. check(name, is_so).
SCRIPT = r"""
const found = {};
const check = (name, isSo) => { found[name] = Boolean(isSo); };
window.addEventListener('error', event => check(`error: ${event.message}`, false));
try {
  const table = document.getElementById('rows');
  const column = name => [...table.tHead.rows[0].cells].findIndex(each => each.textContent === name);
  const values = at => [...table.tBodies[0].rows].map(row => Number(row.cells[at].dataset.v));
  const texts = at => [...table.tBodies[0].rows].map(row => row.cells[at].textContent);
  const click = at => table.tHead.rows[0].cells[at].querySelector('button').click();
  const isSorted = list => list.every((each, i) => i === 0 || list[i - 1] <= each);
  const makespan = column('makespan');
  const count = table.tBodies[0].rows.length;
  check('the best comes first', values(column('rank'))[0] === 1 && count > 3);
  check('it is not sorted by time before', !isSorted(values(makespan)));
  click(makespan);
  check('a heading sorts', isSorted(values(makespan)));
  check('it says so', table.tHead.rows[0].cells[makespan].getAttribute('aria-sort') === 'ascending');
  check('it tells a screen reader', document.getElementById('said').textContent === 'sorted by makespan, least first');
  click(makespan);
  check('and back', isSorted(values(makespan).reverse()) && table.tBodies[0].rows.length === count);
  click(column('schedule'));
  check('by text, too', isSorted(texts(column('schedule'))));

  const canvas = document.getElementById('gantt');
  const said = document.getElementById('hover');
  const view = () => [Number(canvas.dataset.begin), Number(canvas.dataset.end)];
  const all = view();
  const key = name => canvas.dispatchEvent(new KeyboardEvent('keydown', {key: name, bubbles: true, cancelable: true}));
  const press = name => document.querySelector(`[data-do=${name}]`).click();
  check('all of the time is shown', all[0] === 0 && all[1] > 0);
  press('in');
  check('a button zooms in', Math.abs((view()[1] - view()[0]) / all[1] - 0.5) < 1e-6);
  const before = view();
  press('right');
  check('a button moves', view()[0] > before[0] && Math.abs(view()[1] - view()[0] - all[1] / 2) < 1);
  canvas.focus();
  check('the chart takes the focus', document.activeElement === canvas);
  key('+');
  check('a key zooms in', Math.abs((view()[1] - view()[0]) / all[1] - 0.25) < 1e-6);
  key('0');
  check('a key shows all', view()[0] === 0 && view()[1] === all[1]);
  key('ArrowDown');
  key('n');
  check('keys go from op to op', /^rank 1: \S+ of stage \d+, micro-batch \d+, /.test(said.textContent));
  const box = canvas.getBoundingClientRect();
  const wheel = {deltaY: -100, clientX: box.left + 100, clientY: box.top + 20, cancelable: true};
  canvas.dispatchEvent(new WheelEvent('wheel', wheel));
  check('the wheel zooms', view()[1] - view()[0] < all[1] * 0.9);
  key('0');
  canvas.dispatchEvent(new PointerEvent('pointermove', {clientX: box.left + 58, clientY: box.top + 10}));
  check('the pointer says what is there', said.textContent.startsWith('rank 0: F of stage 0, micro-batch 0, 0 to '));
  check('and what is held', / held$/.test(said.textContent));
  const pixels = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
  check('something is drawn', pixels.some(each => each > 0));

  const pick = document.getElementById('pick');
  pick.value = '1';
  pick.dispatchEvent(new Event('change'));
  check('another point can be chosen', canvas.getAttribute('aria-label').includes(pick.selectedOptions[0].textContent));
  check('its ranks stand in a table', document.getElementById('per-rank').tBodies[0].rows.length >= 2);
  check('and why they idle', document.getElementById('causes').tBodies[0].rows.length >= 1);
  check('and it is marked', document.querySelector('tr[aria-current=true]').dataset.detail === '1');
  document.querySelector('button[data-show="2"]').click();
  check('the table chooses, too', pick.value === '2');

  check('nothing was loaded', performance.getEntriesByType('resource').length === 0);
  check('nothing is wider than the window', document.documentElement.scrollWidth <= window.innerWidth);
  check('each picture has a name', [...document.querySelectorAll('svg')].every(each => each.querySelector('title')));
  check('each button has a name', [...document.querySelectorAll('button')].every(each => each.textContent.trim()));
  check('each plot is there', document.querySelectorAll('svg.plot').length === 3);
} catch (error) {
  check(`error: ${error.message}`, false);
}
found.background = getComputedStyle(document.body).backgroundColor;
const result = document.createElement('pre');
result.id = 'test-result';
result.textContent = JSON.stringify(found);
document.body.append(result);
"""

BARE_SCRIPT = r"""
const head = document.getElementById('rows').tHead.rows[0].cells[1];
head.querySelector('button').click();
const result = document.createElement('pre');
result.id = 'test-result';
result.textContent = JSON.stringify({sorted: head.getAttribute('aria-sort') === 'ascending'});
document.body.append(result);
"""

# Of several draws: what is said of them sorts as numbers, and is drawn.
DRAWN_SCRIPT = r"""
{  // names of its own, beside those of the page
  const table = document.getElementById('rows');
  const at = [...table.tHead.rows[0].cells].findIndex(each => each.textContent === 'wins');
  table.tHead.rows[0].cells[at].querySelector('button').click();
  const wins = [...table.tBodies[0].rows].map(row => Number(row.cells[at].dataset.v));
  const result = document.createElement('pre');
  result.id = 'test-result';
  result.textContent = JSON.stringify({
    wins: wins.every((each, i) => i === 0 || wins[i - 1] <= each) && Math.abs(wins.reduce((a, b) => a + b) - 1) < 1e-9,
    bands: document.querySelectorAll('svg.plot .band, svg.plot .whisker').length > 0,
    narrow: document.documentElement.scrollWidth <= document.documentElement.clientWidth,
  });
  document.body.append(result);
}
"""


def browse(browser, page, width, dark, folder):
    """The checks by name, and what was written to the console."""
    scheme = 0 if dark else 1
    # Without a user's profile, and without a sandbox, which a container does not let it have.
    result = subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr",
         f"--blink-settings=preferredColorScheme={scheme}", f"--user-data-dir={folder}/profile",
         f"--window-size={width},900", "--virtual-time-budget=2000", "--dump-dom", page.as_uri()],
        text=True, encoding="utf-8", stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=120, check=False)
    found = re.search(r'<pre id="test-result">(.*?)</pre>', result.stdout, re.S)
    if not found:
        raise RuntimeError(f"the page left no result:\n{result.stderr[-2000:]}")
    return json.loads(html.unescape(found[1])), [line for line in result.stderr.splitlines() if "CONSOLE" in line]


def main():
    tool = Path(sys.argv[1]).resolve()
    browser = next((path for path in map(shutil.which, BROWSERS) if path), None)
    if browser is None:
        print(f"skipped: there is none of {', '.join(BROWSERS)}")
        return 77
    failures, checks, backgrounds = [], 0, {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        grid = ["--schedules", "1f1b,zb1p,interleaved,dualpipe", "-p", "4", "-m", "8,16", "--set", "latency=0,100us"]
        subprocess.run([tool, "sweep", *grid, "--activation-bytes", "64MB", "-o", folder / "sweep.jsonl"], check=True)
        subprocess.run([tool, "report", folder / "sweep.jsonl", "--html", folder / "page.html"], check=True,
                       stdout=subprocess.DEVNULL)
        bare = folder / "bare.html"
        subprocess.run([tool, "report", folder / "sweep.jsonl", "--charts", "0", "--html", bare], check=True,
                       stdout=subprocess.DEVNULL)
        text = (folder / "page.html").read_text(encoding="utf-8")
        text = text.replace("</body>", f"<script>{SCRIPT}</script></body>")
        (folder / "page.html").write_text(text, encoding="utf-8")
        for width, dark in ((1280, False), (390, True)):
            found, console = browse(browser, folder / "page.html", width, dark, folder)
            backgrounds[dark] = found.pop("background")
            checks += len(found)
            where = f"{width} pixels, {'dark' if dark else 'light'}"
            failures += [f"{where}: not so: {name}" for name, is_so in found.items() if not is_so]
            failures += [f"{where}: {line}" for line in console]
        text = bare.read_text(encoding="utf-8").replace("</body>", f"<script>{BARE_SCRIPT}</script></body>")
        bare.write_text(text, encoding="utf-8")
        found, console = browse(browser, bare, 1280, False, folder)
        checks += 1
        failures += [f"without charts: {line}" for line in console]
        if found != {"sorted": True}:
            failures.append(f"without charts: {found}")
        subprocess.run([tool, "sweep", "--schedules", "1f1b,zb1p,zb-h2", "-p", "4", "-m", "12", "--jitter", "0.2",
                        "--seeds", "20", "--activation-bytes", "64MB", "-o", folder / "drawn.jsonl"], check=True)
        drawn = folder / "drawn.html"
        subprocess.run([tool, "report", folder / "drawn.jsonl", "--html", drawn], check=True, stdout=subprocess.DEVNULL)
        text = drawn.read_text(encoding="utf-8").replace("</body>", f"<script>{DRAWN_SCRIPT}</script></body>")
        drawn.write_text(text, encoding="utf-8")
        found, console = browse(browser, drawn, 390, True, folder)
        checks += len(found)
        failures += [f"of draws: not so: {name}" for name, is_so in found.items() if not is_so]
        failures += [f"of draws: {line}" for line in console]
    if backgrounds[False] == backgrounds[True]:
        failures.append(f"dark and light look the same: {backgrounds[True]}")
    print("\n".join(failures + [f"{checks} checks, {len(failures)} failures"]))
    return 1 if failures else 0


sys.exit(main())
