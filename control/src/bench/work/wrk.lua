-- Run by wrk at its end: everything it counted, on one line, so that no text for people is parsed.
done = function(summary, latency, requests)
  local points = {}
  for _, p in ipairs({10, 20, 30, 40, 50, 60, 70, 75, 80, 90, 95, 99, 99.9, 99.99}) do
    points[#points + 1] = string.format("[%g,%d]", p, latency:percentile(p))
  end
  local e = summary.errors
  io.write(string.format(
    '\nculvert-wrk {"requests":%d,"duration_us":%d,"connect":%d,"read":%d,"write":%d,"timeout":%d,"status":%d,' ..
    '"min_us":%d,"max_us":%d,"latency_us":[%s]}\n',
    summary.requests, summary.duration, e.connect, e.read, e.write, e.timeout, e.status,
    latency.min, latency.max, table.concat(points, ",")))
end
