// Runs every case with one published client against a cluster and prints TAP.
//
//   node run.mjs VERSION URL KEYFILE MODULES [FILTER]
//
// VERSION is 14, 16, 19 or 20; MODULES the node_modules directory; FILTER a
// regular expression on the cases' names. The cluster must run with the
// heartbeat of `HEARTBEAT` below. See operator.mjs for standard input.

import fs from 'node:fs';
import { load } from './adapter.mjs';
import { cases } from './cases.mjs';
import { operator } from './operator.mjs';
import { signer } from './token.mjs';

/** What the cluster under test is configured with, in milliseconds. */
const HEARTBEAT = { pingIntervalMs: 1000, pongTimeoutMs: 6000 };
// Enough to overlap the waits, few enough to leave each its share of the machine.
const CASES_AT_ONCE = 8;
const CASE_TIMEOUT_MS = 90_000;

const [version, url, keyFile, modules, filter] = process.argv.slice(2);
const { hostname, port, pathname } = new URL(url);
const library = load(Number(version), modules);
const context = {
  library,
  operator,
  heartbeat: HEARTBEAT,
  sign: signer(fs.readFileSync(keyFile)),
  create: (options = {}) => library.create({ hostname, port: Number(port), path: pathname, ...options }),
};

let printed = 0;
let failed = 0;

function report(name, error) {
  printed += 1;
  if (!error) {
    console.log(`ok ${printed} - v${version}: ${name}`);
    return;
  }
  failed += 1;
  console.log(`not ok ${printed} - v${version}: ${name}`);
  for (const line of String(error.stack ?? error).split('\n')) console.log(`# ${line}`);
}

async function runCase({ name, run }) {
  const clients = [];
  const create = (options) => {
    const client = context.create(options);
    clients.push(client);
    return client;
  };
  // Cases may run side by side, and several runs on one cluster.
  const channel = `${name}-${Math.random().toString(36).slice(2)}`;
  let timer;
  const timeout = new Promise((resolve, reject) => {
    timer = setTimeout(() => reject(new Error(`not finished within ${CASE_TIMEOUT_MS} ms`)), CASE_TIMEOUT_MS);
  });
  try {
    await Promise.race([run({ ...context, create, channel }), timeout]);
    report(name);
  } catch (error) {
    report(name, error);
  } finally {
    clearTimeout(timer);
    for (const client of clients) client.disconnect();
  }
}

const matching = cases.filter((item) => !(filter && !new RegExp(filter).test(item.name)) && item.runs?.(library) !== false);
const together = matching.filter((item) => !item.alone);
const alone = matching.filter((item) => item.alone);

const queue = [...together];
await Promise.all(Array.from({ length: CASES_AT_ONCE }, async () => {
  for (let item = queue.shift(); item; item = queue.shift()) await runCase(item);
}));
for (const item of alone) await runCase(item);

console.log(`1..${printed}`);
operator.close();
// The clients' own timers would keep the process for a while.
process.exit(failed ? 1 : 0);
