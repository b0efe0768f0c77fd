// Reads one stream, the task given as JSON on standard input, and prints a JSON line for each thing
// the client does.

import { text } from "node:stream/consumers";

import { read } from "./reader.js";

await read(JSON.parse(await text(process.stdin)), (line) => console.log(JSON.stringify(line)));
