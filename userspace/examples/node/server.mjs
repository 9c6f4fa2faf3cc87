// SPDX-License-Identifier: Apache-2.0
// server.mjs ADDRESS PORT: a Node.js server that may be replaced while it runs. reusePort needs
// Node.js 22.12 or 23.1. On TERM it closes its listener, finishes what it has and ends.
import http from 'node:http';

const server = http.createServer((request, response) => {
  response.setHeader('Connection', 'close');
  response.end('node\n');
});
server.listen({ host: process.argv[2], port: Number(process.argv[3]), reusePort: true, backlog: 4096 });
process.on('SIGTERM', () => server.close());
