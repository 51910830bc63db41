// Conditions on images, in the words of `dfkd bank … --where`: comparisons of columns, numbers and names of classes, joined by
// and, or, not and parentheses. Gives a function of an image's row; throws an Error whose message is a sentence.
function readCondition(text, columns, classes) {
  const words = [...text.matchAll(/\s*(?:(\d+\.?\d*(?:e[+-]?\d+)?|\.\d+(?:e[+-]?\d+)?)|([\p{L}_][\p{L}\p{N}_]*)|'([^']*)'|"([^"]*)"|(<=|>=|==|!=|[<>()[\],{}-])|(\S))/giu)]
    .map(([, number, name, single, double, sign, other]) =>
      number !== undefined ? {number: Number(number), text: number} : name !== undefined ? {name, text: name}
      : (single ?? double) !== undefined ? {quoted: single ?? double, text: `'${single ?? double}'`} : {sign: sign ?? other, text: sign ?? other});
  const signs = {"<": (a, b) => a < b, "<=": (a, b) => a <= b, ">": (a, b) => a > b, ">=": (a, b) => a >= b, "==": (a, b) => a === b,
                 "!=": (a, b) => a !== b && a === a && b === b};
  const nothing = {text: "the end"};
  let place = 0;
  const here = () => words[place] ?? nothing;
  const is = word => here().sign === word || here().name === word;
  const take = word => is(word) && Boolean(++place);
  const fail = what => { throw new Error(what); };

  const joined = (word, inner, join) => {
    const parts = [inner()];
    while (take(word)) parts.push(inner());
    return parts.length === 1 ? parts[0] : row => parts[join](part => part(row));
  };
  const either = () => joined("or", () => joined("and", single, "every"), "some");
  function single() {
    if (take("not")) { const inner = single(); return row => !inner(row); }
    if (take("(")) { const inner = either(); take(")") || fail(`')' is missing before ${here().text}.`); return inner; }
    return comparison();
  }
  function comparison() {
    const sides = [word()], between = [];
    for (;;) {
      const outside = is("not") && words[place + 1]?.name === "in" && Boolean(++place);
      if (take("in")) { sides.push(list()); between.push(outside ? "not in" : "in"); }
      else if (here().sign in signs) { between.push(words[place++].sign); sides.push(word()); }
      else break;
    }
    if (!between.length) fail(here() === nothing ? "A comparison is missing at the end, e.g. confidence < 0.5." : `'${here().text}' is no comparison; write e.g. confidence < 0.5.`);
    const ofClasses = sides.flat().some(side => side.name === "label" || side.name === "prediction");
    const tests = between.map((sign, at) => {
      const left = value(sides[at], ofClasses);
      if (sign.endsWith("in")) {
        const members = sides[at + 1].map(side => value(side, ofClasses));
        return row => members.some(member => member(row) === left(row)) === (sign === "in");
      }
      const right = value(sides[at + 1], ofClasses);
      return row => signs[sign](left(row), right(row));
    });
    return tests.length === 1 ? tests[0] : row => tests.every(test => test(row));
  }
  function word() {
    const minus = take("-"), found = here();
    if (found.number === undefined && found.name === undefined && found.quoted === undefined) fail(`A column or a number is missing before ${found.text}.`);
    place++;
    return minus ? {...found, minus} : found;
  }
  function list() {
    const end = {"(": ")", "[": "]", "{": "}"}[here().sign];
    if (!end) fail("After 'in' stands a list, e.g. label in (0, 1).");
    place++;
    const members = [];
    while (!take(end)) {
      members.push(word());
      if (!take(",") && !is(end)) fail(`'${end}' is missing before ${here().text}.`);
    }
    return members;
  }
  function value({number, name, quoted, minus}, ofClasses) {
    if (number !== undefined) return () => minus ? -number : number;
    const word = name ?? quoted;
    if (name !== undefined && name in columns) {
      const column = columns[name];
      return row => column[row] === null ? NaN : minus ? -column[row] : column[row];
    }
    if (ofClasses && classes.includes(word)) { const label = classes.indexOf(word); return () => label; }
    return fail(`No column${ofClasses ? " or class" : ""} '${word}'.`);
  }

  if (!words.length) return () => true;
  const whole = either();
  if (place < words.length) fail(`'${here().text}' is not understood here.`);
  return whole;
}
