// What a page on another port of the same host may try against a manager whose user is logged in.
// A function for page.evaluate; it returns what it could read ({attack: the first characters}) and which of our
// pages, opened in a window, it still holds a handle of.
// Every attempt is allowed to fail in silence: what matters is what the manager looks like afterwards.
async ({target, cookie, model, instance, planted, severs}) => {
  const read = {}, tied = [];
  const soon = (ms) => new Promise((done) => setTimeout(done, ms, ''));
  const attempt = async (name, act) => {
    try {
      const got = await Promise.race([act(), soon(15000)]);
      if (got) read[name] = String(got).slice(0, 200);
    } catch { /* the browser would not even send it or not show it */ }
  };

  // Resolves when a window shows another origin than its about:blank, or is none of ours any more.
  const arrived = async (opened) => {
    while (!opened.closed) {
      try { opened.document.title; } catch { break; }
      await soon(20);
    }
  };

  // The session's cookie is planted first, so that everything below is sent with two of its name.
  for (const name of [cookie, `${cookie}_pre`])
    for (const path of ['/', '/api', '/api/me', '/login', '/logout'])
      document.cookie = `${name}=EVIL; path=${path}`;
  document.cookie = `${cookie}_pre=${planted.cookie}; path=/login`;

  const bodies = {
    '/api/api-keys': {name: 'stolen', scope: 'inference'},
    '/api/instances': {model_path: model, threads: 1, ctx_size: 512},
    '/api/settings': {require_auth: false},
    '/api/users': {name: 'mallory', password: 'a password of mallory', role: 'admin'},
    '/api/presets/stolen.gguf': {note: 'stolen'},
  };
  const writes = Object.entries(bodies).map(([path, fields]) => [path, JSON.stringify(fields)]);
  const ask = (name, path, options) => attempt(name, async () => {
    const answer = await fetch(target + path, {credentials: 'include', ...options});
    return answer.text();
  });
  const kinds = {
    text: (body) => ({mode: 'no-cors', body}),
    untyped: (body) => ({mode: 'no-cors', body: new Blob([body])}),
    form: (body) => ({mode: 'no-cors', body: new Blob([body], {type: 'application/x-www-form-urlencoded'})}),
    json: (body) => ({mode: 'cors', body, headers: {'Content-Type': 'application/json'}}),
    token: (body) => ({mode: 'cors', body, headers: {'Content-Type': 'application/json', 'X-CSRF-Token': 'EVIL'}}),
  };
  const fetches = writes.flatMap(([path, body]) => Object.entries(kinds).map(([kind, options]) =>
    ask(`fetch ${kind} ${path}`, path, {method: 'POST', ...options(body)})));
  const removals = [`/api/instances/${instance}`, '/api/me/sessions'].map((path) =>
    ask(`fetch DELETE ${path}`, path, {method: 'DELETE'}));
  const beacons = writes.map(([path, body]) =>
    attempt(`beacon ${path}`, async () => { navigator.sendBeacon(target + path, body); return ''; }));

  const secrets = ['/api/api-keys', '/api/me', '/api/users', '/api/settings', '/api/instances'];
  const reads = secrets.flatMap((path) => [
    ask(`fetch ${path}`, path, {}),
    ask(`fetch opaque ${path}`, path, {mode: 'no-cors'}),
    attempt(`script ${path}`, () => new Promise((done) => {
      const script = document.createElement('script');
      script.onload = () => done('it ran as a script');
      script.onerror = () => done('');
      script.src = target + path;
      document.body.append(script);
    })),
  ]);

  // An enctype of text/plain sends name=value, and a name may be the first half of a JSON text.
  const submit = (name, path, enctype, fields, where) => attempt(name, () => new Promise((done) => {
    const form = document.createElement('form');
    Object.assign(form, {method: 'POST', action: target + path, enctype, target: `to ${name}`});
    for (const [key, value] of Object.entries(fields)) {
      const input = document.createElement('input');
      Object.assign(input, {type: 'hidden', name: key, value});
      form.append(input);
    }
    document.body.append(form);
    if (where === 'frame') {
      const frame = document.createElement('iframe');
      frame.name = form.target;
      document.body.append(frame);
      frame.onload = () => setTimeout(done, 50, '');
    } else {
      arrived(window.open('', form.target)).then(() => done(''));
    }
    form.submit();
  }));
  const login = {username: 'mallory', password: 'a password of mallory', csrf_token: planted.token};
  const forms = ['frame', 'window'].flatMap((where) => [
    submit(`form text ${where}`, '/api/api-keys', 'text/plain',
      {'{"name":"stolen': 'by a form","scope":"inference"}'}, where),
    submit(`form ${where}`, '/api/api-keys', 'application/x-www-form-urlencoded',
      {name: 'stolen', scope: 'inference'}, where),
    submit(`form logout ${where}`, '/logout', 'application/x-www-form-urlencoded', {}, where),
    submit(`form login ${where}`, '/login', 'application/x-www-form-urlencoded', login, where),
  ]);

  const images = ['/logout', '/api/api-keys', `/api/instances/${instance}/restart`].map((path) =>
    attempt(`image ${path}`, () => new Promise((done) => {
      const image = new Image();
      image.onload = () => done('it is an image');
      image.onerror = () => done('');
      image.src = target + path;
    })));

  const streams = ['/api/events/stream', `/api/instances/${instance}/logs/stream`].map((path) =>
    attempt(`stream ${path}`, () => new Promise((done) => {
      const source = new EventSource(target + path, {withCredentials: true});
      source.onopen = () => { source.close(); done('the stream opened'); };
      source.onmessage = (event) => { source.close(); done(event.data); };
      source.onerror = () => { source.close(); done(''); };
    })));

  const windows = ['/', '/login', '/logout'].map((path) => attempt(`window ${path}`, async () => {
    const opened = window.open(target + path);
    await arrived(opened);
    for (let rest = 400; severs && rest && !opened.closed; rest--) await soon(20);
    if (!opened.closed) tied.push(path);
    return opened.document.documentElement.outerHTML;
  }));
  const frames = ['/', '/login', '/logout'].map((path) => attempt(`frame ${path}`, () => new Promise((done) => {
    const frame = document.createElement('iframe');
    frame.onload = () => { try { done(frame.contentDocument.body.innerHTML); } catch { done(''); } };
    frame.src = target + path;
    document.body.append(frame);
  })));

  await Promise.all([fetches, removals, beacons, reads, forms, images, streams, windows, frames].flat());
  return {read, tied};
}
