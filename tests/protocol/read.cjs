// Reads Arrow IPC streams by apache-arrow: node read.cjs FILE...; prints a JSON object for each file, a line each.
const fs = require("fs");
const { tableFromIPC, DataType } = require("apache-arrow");

const plain = (key, value) =>
  typeof value === "bigint" ? Number(value) : value instanceof Uint8Array ? Buffer.from(value).toString("hex") : value;

for (const file of process.argv.slice(2)) {
  const table = tableFromIPC(fs.readFileSync(file));
  const columns = {};
  for (const field of table.schema.fields) {
    const column = table.getChild(field.name);
    const nested = DataType.isList(field.type) || DataType.isStruct(field.type);
    columns[field.name] = {
      type: String(field.type),
      // what lies in the file, of columns that are one buffer
      bytes: column.data.map((data) => (data.values instanceof Object && ArrayBuffer.isView(data.values)
        ? Buffer.from(data.values.buffer, data.values.byteOffset, data.values.byteLength).toString("hex") : "")).join(""),
      values: table.numRows > 1000 ? [] : [...column].map((value) => (nested && value !== null ? value.toJSON() : value)),
    };
  }
  const metadata = Object.fromEntries(table.schema.metadata);
  console.log(JSON.stringify({ rows: table.numRows, metadata, columns }, plain));
}
