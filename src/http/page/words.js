// What an event says to a person: a tone for its dot, a subject, what happened, and where to read on.

const FAILED = new Set(['failure', 'timed_out', 'startup_failure']);

// The tone of a run or a job.
export function toneOf(status, conclusion) {
  if (FAILED.has(conclusion)) return 'bad';
  if (conclusion === 'success') return 'good';
  if (conclusion) return 'still';
  return status === 'in_progress' ? 'moving' : 'waiting';
}

function outcome(status, conclusion) {
  if (FAILED.has(conclusion)) return conclusion === 'timed_out' ? 'timed out' : 'failed';
  if (conclusion === 'success') return 'passed';
  if (conclusion) return conclusion.replaceAll('_', ' ');
  return (status ?? 'seen').replaceAll('_', ' ');
}

// Only what leads to another site is a link.
function link(url) {
  return typeof url === 'string' && /^https?:\/\//.test(url) ? url : null;
}

const text = (value) => (typeof value === 'string' || typeof value === 'number' ? String(value) : '');

export function describe(event) {
  const data = event.data !== null && typeof event.data === 'object' ? event.data : {};
  const [area, what = ''] = text(event.type).split(':');
  const common = { repo: text(event.repo), detail: text(data.branch), url: link(data.url) };
  if (area === 'workflow') {
    const { status, conclusion } = data;
    const name = text(data.workflowName) || 'Workflow';
    const subject = what === 'job' && data.name ? `${name} / ${text(data.name)}` : name;
    return { ...common, tone: toneOf(status, conclusion), subject, happened: outcome(status, conclusion) };
  }
  const bad = what === 'failed' || event.type === 'drift:detected';
  const good = what === 'complete' || what === 'done' || what === 'success';
  const tone = bad ? 'bad' : good ? 'good' : 'still';
  const kind = area === 'repo' ? 'Repository' : area.charAt(0).toUpperCase() + area.slice(1);
  const named = area === 'repo' ? '' : text(data.title) || text(data.name);
  return { ...common, tone, subject: named || kind || 'Event', happened: what.replaceAll('_', ' ') };
}

// When, as a clock; with the day if that is not today.
export function clock(date) {
  const time = date.toLocaleTimeString([], { hour: '2-digit', minute: '2-digit', second: '2-digit', hour12: false });
  if (date.toDateString() === new Date().toDateString()) return time;
  return date.toLocaleDateString([], { day: '2-digit', month: 'short' });
}

// How long ago, in one short word.
export function ago(date, now = Date.now()) {
  const seconds = Math.max(0, Math.round((now - date.getTime()) / 1000));
  if (seconds < 60) return 'now';
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 86_400) return `${Math.floor(seconds / 3600)} h`;
  return `${Math.floor(seconds / 86_400)} d`;
}
