// Processes killed under the clients.

import assert from 'node:assert/strict';
import { PATIENCE_MS } from '../adapter.mjs';

// More than the accept gate lets one of two workers take.
const MEMBERS = 48;
const RECONNECT = { autoReconnect: true, autoReconnectOptions: { initialDelay: 50, randomness: 200, multiplier: 1 } };

// Longer than one round ever takes; a round that lost something is repeated.
const ROUND_MS = 3000;

// Half of what a client waits that does not come back at once.
const AT_ONCE_MS = 5000;

/** Every member publishes and every member receives from every one; throws what went wrong. */
async function round(members, channel) {
  const id = Math.random();
  await Promise.all(members.map(({ client }, n) => client.publish(channel, { id, n })));
  await Promise.all(members.map(async ({ received }) => {
    const heard = new Set();
    while (heard.size < members.length) heard.add((await received.until((data) => data.id === id, ROUND_MS)).n);
  }));
}

/** Rounds until one is whole. */
async function serviceIsWhole(members, channel) {
  const deadline = Date.now() + PATIENCE_MS;
  for (;;) {
    try {
      await Promise.all(members.map(({ client }) => client.subscribed(channel)));
      return await round(members, channel);
    } catch (error) {
      if (Date.now() > deadline) throw error;
    }
  }
}

/** Connections per worker once there are `total`. */
async function counts(operator, total) {
  const deadline = Date.now() + PATIENCE_MS;
  for (;;) {
    const connections = await operator.workers();
    if (connections.reduce((sum, count) => sum + count) === total) return connections;
    assert.ok(Date.now() < deadline, `connections per worker stay at ${connections}`);
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
}

async function allOpen(members, patience) {
  const deadline = Date.now() + patience;
  while (members.some(({ client }) => client.state !== 'open')) {
    assert.ok(Date.now() < deadline, `not all connected within ${patience} ms`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

async function join(create, channel, options = RECONNECT) {
  return Promise.all(Array.from({ length: MEMBERS }, async () => {
    const client = create(options);
    await client.connected();
    return { client, received: await client.subscribe(channel) };
  }));
}

export const failures = [
  {
    name: 'clients of a killed broker stay connected and receive again',
    alone: true,
    async run({ create, channel, operator }) {
      const members = await join(create, channel);
      await round(members, channel);
      for (const slot of [1, 2]) {
        await operator.killBroker(slot);
        await serviceIsWhole(members, channel);
      }
      for (const { client } of members) assert.equal(client.events.disconnect.seen, 0);
    },
  },
  {
    name: 'clients of a killed worker come back and resubscribe, the others stay',
    alone: true,
    async run({ create, channel, operator }) {
      // Those of the cases before are gone and counted.
      await counts(operator, 0);
      const members = await join(create, channel);
      await round(members, channel);
      const connections = await counts(operator, MEMBERS);
      const most = Math.max(...connections);
      await operator.killWorker(connections.indexOf(most) + 1);
      await serviceIsWhole(members, channel);
      const gone = members.filter(({ client }) => client.events.disconnect.seen > 0);
      assert.equal(gone.length, most);
      assert.ok(most < MEMBERS, 'no client was on another worker');
      for (const { client } of gone) {
        assert.equal((await client.events.disconnect.next()).code, 1006);
        assert.equal(client.events.disconnect.seen, 1);
      }
    },
  },
  {
    name: 'clients of a worker that is taken away stay connected and miss nothing',
    alone: true,
    async run({ create, channel, operator }) {
      await counts(operator, 0);
      // Clients as they come: after most closes they wait 10 to 20 seconds.
      const members = [];
      let connections = [0];
      // The gate may leave one of many workers without a client for a while.
      while (connections.at(-1) === 0) {
        members.push(...(await join(create, channel, { autoReconnect: true })));
        assert.ok(members.length <= 8 * MEMBERS, `the last worker gets no client: ${connections}`);
        connections = await counts(operator, members.length);
      }
      await round(members, channel);
      await operator.scale(connections.length - 1);
      await allOpen(members, AT_ONCE_MS);
      await serviceIsWhole(members, channel);
      const gone = members.filter(({ client }) => client.events.disconnect.seen > 0);
      assert.equal(gone.length, 0, 'a client was disconnected');
      await operator.scale(connections.length);
    },
  },
];
