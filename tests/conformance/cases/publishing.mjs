// Subscriptions, publications, acknowledgements.

import assert from 'node:assert/strict';
import { PATIENCE_MS } from '../adapter.mjs';

const CHANNELS_PER_CONNECTION_MAX = 1000;

/** Connects clients until every worker has one; their subscriptions' queues. */
async function onEveryWorker({ create, channel, operator }) {
  const members = [];
  const deadline = Date.now() + PATIENCE_MS;
  for (;;) {
    const counts = await operator.workers();
    if (members.length >= 2 * counts.length && counts.every((count) => count > 0)) return members;
    assert.ok(Date.now() < deadline, `connections per worker stay at ${counts}`);
    for (let n = 0; n < 4 && members.length < 200; n += 1) {
      const client = create();
      await client.connected();
      members.push({ client, received: await client.subscribe(channel) });
    }
    await new Promise((resolve) => setTimeout(resolve, 300));
  }
}

export const publishing = [
  {
    name: 'a publisher that subscribes receives its own publication once',
    async run({ create, channel }) {
      const client = create();
      await client.connected();
      const received = await client.subscribe(channel);
      await client.publish(channel, { n: 1 });
      client.publishOneWay(channel, { n: 2 });
      await client.publish(channel, { n: 3 });
      for (const n of [1, 2, 3]) assert.deepEqual(await received.next(), { n });
      assert.equal(received.seen, 3);
    },
  },
  {
    name: 'publications cross between all workers',
    async run(context) {
      const members = await onEveryWorker(context);
      await Promise.all(members.map(({ client }, n) => client.publish(context.channel, n)));
      const expected = members.map((_, n) => n);
      const orders = new Set();
      for (const { received } of members) {
        const got = [];
        while (got.length < members.length) got.push(await received.next());
        orders.add(got.join());
        assert.deepEqual(got.sort((a, b) => a - b), expected);
      }
      assert.equal(orders.size, 1, 'every subscriber sees one order');
    },
  },
  {
    name: 'one publisher is seen in publish order, acknowledged or not',
    async run({ create, channel }) {
      const [publisher, subscriber] = [create(), create()];
      await Promise.all([publisher.connected(), subscriber.connected()]);
      const received = await subscriber.subscribe(channel);
      const acknowledged = [];
      for (let n = 0; n < 2000; n += 1) {
        if (n % 3) publisher.publishOneWay(channel, n);
        else acknowledged.push(publisher.publish(channel, n));
      }
      await Promise.all(acknowledged);
      for (let n = 0; n < 2000; n += 1) assert.equal(await received.next(), n);
    },
  },
  {
    name: 'an unsubscribed client receives nothing more until it subscribes again',
    async run({ create, channel }) {
      const [publisher, subscriber] = [create(), create()];
      await Promise.all([publisher.connected(), subscriber.connected()]);
      const first = await subscriber.subscribe(channel);
      const marker = await subscriber.subscribe(`${channel}-marker`);
      await publisher.publish(channel, 'one');
      assert.equal(await first.next(), 'one');
      subscriber.unsubscribe(channel);
      // The unsubscription has no answer; a call behind it has.
      await subscriber.publish(`${channel}-marker`, 0);
      await marker.next();
      await publisher.publish(channel, 'two');
      subscriber.socket.subscribe(channel);
      await subscriber.subscribed(channel);
      await publisher.publish(channel, 'three');
      assert.equal(await first.next(), 'three');
    },
  },
  {
    name: 'any string is a channel name',
    async run({ create, channel }) {
      const client = create();
      await client.connected();
      const long = channel.padEnd(512, 'x').slice(-512);
      for (const name of ['', `${channel} a/b?c#d`, `${channel}"\\\n\u0000\u2028`, `${channel} 日本語 🎮`, long]) {
        const received = await client.subscribe(name);
        await client.publish(name, name);
        assert.equal(await received.until((data) => data === name), name);
      }
    },
  },
  {
    name: 'a channel prefix is part of the name on the wire only',
    async run({ create, channel }) {
      const [prefixed, plain] = [create({ channelPrefix: `${channel}/` }), create()];
      await Promise.all([prefixed.connected(), plain.connected()]);
      const received = await prefixed.subscribe('a');
      await plain.publish(`${channel}/a`, 1);
      assert.equal(await received.next(), 1);
    },
  },
  {
    name: 'data arrives as it was sent',
    async run({ create, channel }) {
      const client = create();
      await client.connected();
      const received = await client.subscribe(channel);
      const values = [null, true, 0, -1.5e-7, '', 'text', '\u0000"\\\u2028', '日本語 🎮', 'half \ud83d a pair',
        [], {}, [[[1], null]], { a: { b: [1, { c: null }] }, '': '' }, { constructor: 1, toString: null }];
      for (const value of values) {
        await client.publish(channel, value);
        assert.deepEqual(await received.next(), value);
      }
      await client.publish(channel);
      assert.equal(await received.next(), undefined);
      await client.publish(channel, Buffer.from([0, 255, 16]));
      assert.deepEqual(await received.next(), { base64: true, data: 'AP8Q' });
    },
  },
  {
    name: 'deeply nested data passes',
    async run({ create, channel }) {
      const client = create();
      await client.connected();
      const received = await client.subscribe(channel);
      let value = 1;
      for (let depth = 0; depth < 1000; depth += 1) value = [value];
      await client.publish(channel, value);
      assert.equal(JSON.stringify(await received.next()), JSON.stringify(value));
    },
  },
  {
    name: 'large publications arrive whole',
    async run({ create, channel }) {
      const [publisher, subscriber] = [create(), create()];
      await Promise.all([publisher.connected(), subscriber.connected()]);
      const received = await subscriber.subscribe(channel);
      for (const bytes of [100, 125, 126, 65_000, 66_000, 900_000]) {
        const data = 'é'.repeat(bytes / 2);
        await publisher.publish(channel, data);
        assert.ok((await received.next()) === data, `${bytes} bytes`);
      }
    },
  },
  {
    name: 'channels beyond the limit are refused, and the others stay',
    async run({ create, channel }) {
      const client = create();
      await client.connected();
      const queues = Array.from({ length: CHANNELS_PER_CONNECTION_MAX }, (_, n) => client.watch(`${channel}${n}`));
      await client.subscribed(`${channel}${CHANNELS_PER_CONNECTION_MAX - 1}`);
      client.watch(`${channel}-too-many`);
      const { error, channel: refused } = await client.events.subscribeFail.next();
      assert.equal(refused, `${channel}-too-many`);
      assert.equal(error.name, 'BrokerError');
      await client.publish(`${channel}7`, 7);
      assert.equal(await queues[7].next(), 7);
    },
  },
];
