// Reading what a channel keeps, with the client's ordinary calls.

import assert from 'node:assert/strict';

export const history = [
  {
    name: 'a history is read page by page and in both orders',
    async run({ create, channel }) {
      const kept = `kept:${channel}`;
      const client = create();
      await client.connected();
      let page = await client.call('history', { channel: kept });
      assert.deepEqual(page,
        { generation: null, offset: 0, complete: true, more: false, publications: [] });
      const sent = [];
      for (let n = 0; n < 7; n += 1) {
        sent.push({ n, text: 'Grüße' });
        await client.publish(kept, sent[n]);
      }
      const read = [];
      let since = { generation: page.generation, offset: page.offset };
      do {
        page = await client.call('history', { channel: kept, since, limit: 3 });
        assert.equal(page.complete, true);
        read.push(...page.publications);
        since = { generation: page.generation, offset: read[read.length - 1].offset };
      } while (page.more);
      assert.deepEqual(read.map((one) => one.data), sent);
      assert.deepEqual(read.map((one) => one.offset), [1, 2, 3, 4, 5, 6, 7]);
      assert.ok(read.every((one) => Math.abs(Date.now() - one.time) < 60_000));
      const newest = await client.call('history', { channel: kept, limit: 2, order: 'newest' });
      assert.deepEqual(newest.publications.map((one) => one.data.n), [6, 5]);
      client.disconnect();
    },
  },
  {
    name: 'a read of a history that is not possible fails with a name',
    async run({ create, channel }) {
      const client = create();
      await client.connected();
      await assert.rejects(client.call('history', { channel }), { name: 'NoHistoryError' });
      await assert.rejects(client.call('history', { channel: `kept:${channel}`, limit: 0 }),
        { name: 'InvalidActionError' });
      client.disconnect();
    },
  },
];
