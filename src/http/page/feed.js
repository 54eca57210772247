// The two lists: events, newest first, and repositories with their newest run. Rows are made once and
// then changed in place, so nothing jumps; all text comes in as text.

import { ago, clock, describe, toneOf } from './words.js';

const MOST = 200;

function element(name, className, text) {
  const made = document.createElement(name);
  made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

// Rows of the size of those that will come.
export function skeleton(list, count) {
  list.setAttribute('aria-busy', 'true');
  list.replaceChildren(
    ...Array.from({ length: count }, () => {
      const row = element('li', 'row bare');
      row.setAttribute('aria-hidden', 'true');
      row.append(element('span', 'dot'), element('span', 'bone'));
      return row;
    }),
  );
}

export class Feed {
  #list;
  #changed;
  #rows = new Map();
  #order = [];
  #waiting = [];
  #needle = '';
  paused = false;

  // `changed` hears that rows came, went or wait.
  constructor(list, changed) {
    this.#list = list;
    this.#changed = changed;
  }

  get size() {
    return this.#order.length;
  }

  get shown() {
    return this.#list.querySelectorAll('.row:not([hidden])').length;
  }

  get waiting() {
    return this.#waiting.length;
  }

  // Events of one read, or one that has just come; what is here already changes nothing.
  add(events, live) {
    if (this.#list.hasAttribute('aria-busy')) {
      this.#list.removeAttribute('aria-busy');
      this.#list.replaceChildren();
    }
    if (this.paused && live) this.#waiting.push(...events);
    else for (const event of events) this.#insert(event, live);
    for (const id of this.#order.splice(MOST)) {
      this.#rows.get(id).remove();
      this.#rows.delete(id);
    }
    this.#changed();
  }

  pause(paused) {
    this.paused = paused;
    const came = this.#waiting;
    if (!paused) {
      this.#waiting = [];
      this.add(came, true);
    } else this.#changed();
  }

  clear() {
    this.#rows.clear();
    this.#order = [];
    this.#waiting = [];
    this.#list.replaceChildren();
  }

  filter(text) {
    this.#needle = text.trim().toLowerCase();
    for (const row of this.#rows.values()) row.hidden = !row.dataset.text.includes(this.#needle);
    this.#changed();
  }

  // Moves the focus by so many rows, or to the `first` or `last`.
  move(by) {
    const rows = [...this.#list.querySelectorAll('.row:not([hidden]) > .face')];
    if (rows.length === 0) return;
    const at = rows.indexOf(document.activeElement);
    const next = by === 'first' ? 0 : by === 'last' ? rows.length - 1 : at + by;
    rows[Math.min(rows.length - 1, Math.max(0, next))].focus();
  }

  // Ids are UUID v7, so their order is that of time.
  #insert(event, live) {
    if (typeof event.id !== 'string' || this.#rows.has(event.id)) return;
    const row = rowOf(event);
    row.hidden = !row.dataset.text.includes(this.#needle);
    if (live) row.classList.add('fresh');
    let place = this.#order.findIndex((id) => id < event.id);
    if (place < 0) place = this.#order.length;
    const before = this.#rows.get(this.#order[place]) ?? null;
    this.#list.insertBefore(row, before);
    this.#order.splice(place, 0, event.id);
    this.#rows.set(event.id, row);
  }
}

function rowOf(event) {
  const { tone, repo, subject, happened, detail, url } = describe(event);
  const row = element('li', 'row');
  row.dataset.testid = 'activity-item';
  row.dataset.type = event.type;
  row.dataset.text = [repo, subject, happened, detail, event.type].join(' ').toLowerCase();
  const face = element(url ? 'a' : 'div', 'face');
  if (url) {
    face.href = url;
    face.target = '_blank';
    face.rel = 'noopener noreferrer';
  } else face.tabIndex = 0;
  const at = new Date(event.at);
  const time = element('time', 'time', Number.isNaN(at.getTime()) ? '' : clock(at));
  time.dateTime = event.at ?? '';
  const dot = element('span', 'dot');
  dot.dataset.tone = tone;
  dot.setAttribute('aria-hidden', 'true');
  const words = element('span', 'happened', happened);
  words.dataset.tone = tone;
  face.append(dot, time, element('span', 'repo', repo), element('span', 'subject', subject), words);
  face.append(element('span', 'detail', detail));
  row.append(face);
  return row;
}

export class Repos {
  #list;
  // By id: a repository keeps it when it gets another name, and a name can be given again.
  #rows = new Map();
  // By name, as events have it; of two the one that was heard of last.
  #named = new Map();

  constructor(list) {
    this.#list = list;
    setInterval(() => this.#tick(), 15_000);
  }

  get size() {
    return this.#rows.size;
  }

  // All of them, in the order of the list that was read.
  show(repos) {
    this.#list.removeAttribute('aria-busy');
    const rows = new Map();
    this.#named.clear();
    for (const repo of repos) {
      const row = this.#rows.get(repo.id) ?? repoRow();
      rows.set(repo.id, row);
      const name = `${repo.owner}/${repo.name}`;
      row.querySelector('.repo').textContent = name;
      const other = this.#named.get(name);
      if (!other || other.at < repo.updatedAt) this.#named.set(name, { row, at: repo.updatedAt });
      const run = repo.latestRun;
      if (run) set(row, toneOf(run.status, run.conclusion), run.workflowName ?? '', run.updatedAt);
    }
    this.#rows = rows;
    this.#list.replaceChildren(...rows.values());
  }

  clear() {
    this.#rows.clear();
    this.#named.clear();
    this.#list.replaceChildren();
  }

  // A run has moved; `false` if its repository is not in the list.
  moved(event) {
    if (!event.type?.startsWith('workflow:') || event.type === 'workflow:job') return true;
    const row = this.#named.get(event.repo)?.row;
    if (row) set(row, toneOf(event.data.status, event.data.conclusion), event.data.workflowName ?? '', event.at);
    return row !== undefined;
  }

  #tick() {
    for (const row of this.#rows.values()) age(row);
  }
}

function repoRow() {
  const row = element('li', 'row plain');
  const dot = element('span', 'dot');
  dot.setAttribute('aria-hidden', 'true');
  row.append(dot, element('span', 'repo'), element('span', 'subject'), element('time', 'time'));
  return row;
}

const SAID = { bad: 'failed', good: 'passed', moving: 'running', waiting: 'waiting', still: '' };

function set(row, tone, workflow, at) {
  row.querySelector('.dot').dataset.tone = tone;
  row.querySelector('.subject').textContent = [workflow, SAID[tone]].filter(Boolean).join(' ');
  row.querySelector('.time').dateTime = at;
  age(row);
}

function age(row) {
  const time = row.querySelector('.time');
  const at = new Date(time.dateTime);
  time.textContent = time.dateTime && !Number.isNaN(at.getTime()) ? ago(at) : '';
}
