package telemetry_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"regexp"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/ambit-mesh/ambit/mesh/telemetry"
)

var timestamps = regexp.MustCompile(`("?time"?[=:]"?)[^" ]*`)

func logged(t *testing.T, format telemetry.Format, level slog.Level, f func(*telemetry.AccessLog)) string {
	t.Helper()
	var out bytes.Buffer
	levels := telemetry.NewLevels([]telemetry.Directive{{Level: level}}, telemetry.TargetAccess)
	base := telemetry.NewLogger(&out, format, slog.LevelDebug)
	f(telemetry.NewAccessLog(levels.Logger(base, telemetry.TargetAccess), 1))
	return timestamps.ReplaceAllString(out.String(), "${1}T")
}

func connection(inbound bool) *telemetry.Connection {
	r := telemetry.ReporterSource
	if inbound {
		r = telemetry.ReporterDestination
	}
	return &telemetry.Connection{
		Flow:       flow(r, client(1), server(1)),
		SourceAddr: netip.MustParseAddrPort("10.0.0.1:40000"), DestinationAddr: netip.MustParseAddrPort("10.0.0.2:15008"),
		HBONEAddr: "10.0.0.2:8080", Trace: [16]byte{15: 0xab}, Inbound: inbound, Sent: 84, Received: 358, Duration: 15*time.Millisecond + 700*time.Microsecond,
	}
}

func TestAccessLogLines(t *testing.T) {
	const ends = `src.addr=10.0.0.1:40000 src.workload=curl-1 src.namespace=front src.identity=spiffe://cluster.local/ns/front/sa/curl ` +
		`src.cluster=Kubernetes dst.addr=10.0.0.2:15008 dst.hbone_addr=10.0.0.2:8080 dst.service=web.shop.svc.cluster.local ` +
		`dst.workload=web-1 dst.namespace=shop dst.identity=spiffe://cluster.local/ns/shop/sa/web dst.cluster=Kubernetes `
	failed, denied := connection(true), connection(true)
	failed.Err, failed.Flag = errors.New("connect: refused"), telemetry.FlagConnect
	denied.Err, denied.Flag = errors.New("denied by policy shop/p"), telemetry.FlagDenied
	bare := &telemetry.Connection{SourceAddr: netip.MustParseAddrPort("[fd00::1]:1")}
	tests := []struct {
		name   string
		format telemetry.Format
		level  slog.Level
		log    func(*telemetry.AccessLog)
		want   string
	}{
		{"outbound", telemetry.FormatPlain, slog.LevelInfo, func(a *telemetry.AccessLog) { a.Closed(t.Context(), connection(false)) },
			`time=T level=info msg="connection complete" scope=access ` + ends + "direction=outbound trace_id=000000000000000000000000000000ab bytes_sent=84 bytes_recv=358 duration=15ms\n"},
		{"inbound: sent is what the workload here sends", telemetry.FormatPlain, slog.LevelInfo, func(a *telemetry.AccessLog) { a.Closed(t.Context(), connection(true)) },
			`time=T level=info msg="connection complete" scope=access ` + ends + "direction=inbound trace_id=000000000000000000000000000000ab bytes_sent=358 bytes_recv=84 duration=15ms\n"},
		{"failed", telemetry.FormatPlain, slog.LevelInfo, func(a *telemetry.AccessLog) { a.Closed(t.Context(), failed) },
			`time=T level=error msg="connection complete" scope=access ` + ends + "direction=inbound trace_id=000000000000000000000000000000ab bytes_sent=358 bytes_recv=84 duration=15ms response_flags=CONNECT error=\"connect: refused\"\n"},
		{"denied", telemetry.FormatPlain, slog.LevelInfo, func(a *telemetry.AccessLog) { a.Closed(t.Context(), denied) },
			`time=T level=warn msg="connection complete" scope=access ` + ends + "direction=inbound trace_id=000000000000000000000000000000ab bytes_sent=358 bytes_recv=84 duration=15ms response_flags=DENY error=\"denied by policy shop/p\"\n"},
		{"opened is for debugging", telemetry.FormatPlain, slog.LevelInfo, func(a *telemetry.AccessLog) { a.Opened(t.Context(), connection(false)) }, ""},
		{"opened", telemetry.FormatPlain, slog.LevelDebug, func(a *telemetry.AccessLog) { a.Opened(t.Context(), connection(false)) },
			`time=T level=debug msg="connection opened" scope=access ` + ends + "direction=outbound trace_id=000000000000000000000000000000ab\n"},
		{"success is not worth a warning", telemetry.FormatPlain, slog.LevelWarn, func(a *telemetry.AccessLog) { a.Closed(t.Context(), connection(false)) }, ""},
		{"little is known", telemetry.FormatPlain, slog.LevelInfo, func(a *telemetry.AccessLog) { a.Closed(t.Context(), bare) },
			`time=T level=info msg="connection complete" scope=access src.addr=[fd00::1]:1 direction=outbound bytes_sent=0 bytes_recv=0 duration=0ms` + "\n"},
		{"JSON", telemetry.FormatJSON, slog.LevelInfo, func(a *telemetry.AccessLog) { a.Closed(t.Context(), denied) },
			`{"time":"T","level":"warn","message":"connection complete","scope":"access","src.addr":"10.0.0.1:40000","src.workload":"curl-1",` +
				`"src.namespace":"front","src.identity":"spiffe://cluster.local/ns/front/sa/curl","src.cluster":"Kubernetes",` +
				`"dst.addr":"10.0.0.2:15008","dst.hbone_addr":"10.0.0.2:8080","dst.service":"web.shop.svc.cluster.local","dst.workload":"web-1",` +
				`"dst.namespace":"shop","dst.identity":"spiffe://cluster.local/ns/shop/sa/web","dst.cluster":"Kubernetes","direction":"inbound","trace_id":"000000000000000000000000000000ab",` +
				`"bytes_sent":358,"bytes_recv":84,"duration":"15ms","response_flags":"DENY","error":"denied by policy shop/p"}` + "\n"},
	}
	for _, tt := range tests {
		if got := logged(t, tt.format, tt.level, tt.log); got != tt.want {
			t.Errorf("%s:\ngot  %swant %s", tt.name, got, tt.want)
		}
	}
}

// TestAccessLogSampling: a share of what succeeds is logged, and all of what does not.
func TestAccessLogSampling(t *testing.T) {
	count := func(sampling float64, change func(*telemetry.Connection)) int {
		var out bytes.Buffer
		a := telemetry.NewAccessLog(telemetry.NewLogger(&out, telemetry.FormatPlain, slog.LevelInfo), sampling)
		c := connection(false)
		c.Start = time.Unix(1_700_000_000, 0)
		change(c)
		for range 10_000 {
			c.Start = c.Start.Add(1234567 * time.Nanosecond)
			a.Closed(t.Context(), c)
		}
		return strings.Count(out.String(), "connection complete")
	}
	success := func(*telemetry.Connection) {}
	for _, tc := range []struct {
		sampling    float64
		least, most int
	}{{0, 0, 0}, {0.01, 60, 140}, {0.5, 4700, 5300}, {1, 10_000, 10_000}} {
		if n := count(tc.sampling, success); n < tc.least || n > tc.most {
			t.Errorf("sampling %v: %d of 10,000 lines", tc.sampling, n)
		}
	}
	for name, change := range map[string]func(*telemetry.Connection){
		"failed":  func(c *telemetry.Connection) { c.Flag, c.Err = telemetry.FlagConnect, errors.New("refused") },
		"denied":  func(c *telemetry.Connection) { c.Flag, c.Err = telemetry.FlagDenied, errors.New("denied") },
		"revoked": func(c *telemetry.Connection) { c.Flag = telemetry.FlagRevoked },
		"cut":     func(c *telemetry.Connection) { c.Err = errors.New("reset") },
	} {
		if n := count(0, change); n != 10_000 {
			t.Errorf("%s: %d of 10,000 lines", name, n)
		}
	}
}

func TestLevels(t *testing.T) {
	var out bytes.Buffer
	initial, err := telemetry.ParseFilter("xds=warn")
	if err != nil {
		t.Fatal(err)
	}
	levels := telemetry.NewLevels(initial, "access", "proxy", "xds")
	base := telemetry.NewLogger(&out, telemetry.FormatPlain, slog.LevelDebug)
	logs := func() string {
		out.Reset()
		for _, target := range []string{"access", "proxy", "xds", "else"} {
			l := levels.Logger(base, target).With("k", "v")
			for _, level := range []slog.Level{slog.LevelDebug, slog.LevelInfo, slog.LevelWarn, slog.LevelError} {
				l.Log(t.Context(), level, "m")
			}
		}
		lines := regexp.MustCompile(`level=(.)\S* msg=m scope=(\S+) k=v`).FindAllStringSubmatch(out.String(), -1)
		var got strings.Builder
		for _, l := range lines {
			got.WriteString(l[2] + "." + l[1] + " ")
		}
		return strings.TrimSpace(got.String())
	}
	for _, step := range []struct {
		filter string
		reset  bool
		now    string // filter in force
		want   string
	}{
		{"", false, "xds=warn,info", "access.i access.w access.e proxy.i proxy.w proxy.e xds.w xds.e else.i else.w else.e"},
		{"error", false, "xds=warn,error", "access.e proxy.e xds.w xds.e else.e"},
		{"ztunnel::proxy::inbound=debug,access:off", false, "access=off,proxy=debug,xds=warn,error", "proxy.d proxy.i proxy.w proxy.e xds.w xds.e else.e"},
		{"off", false, "access=off,proxy=debug,xds=warn,off", "proxy.d proxy.i proxy.w proxy.e xds.w xds.e"},
		{"access=error", true, "access=error,xds=warn,info", "access.e proxy.i proxy.w proxy.e xds.w xds.e else.i else.w else.e"},
		{"ztunnel=error", true, "xds=warn,error", "access.e proxy.e xds.w xds.e else.e"},
	} {
		directives, err := telemetry.ParseFilter(step.filter)
		if err != nil {
			t.Fatal(err)
		}
		levels.Set(step.reset, directives...)
		if now, got := levels.String(), logs(); now != step.now || got != step.want {
			t.Errorf("after %q: %q, want %q; lines %q, want %q", step.filter, now, step.now, got, step.want)
		}
	}
	for _, bad := range []string{"loud", "access=loud", "access="} {
		if _, err := telemetry.ParseFilter(bad); err == nil {
			t.Errorf("filter %q is taken", bad)
		}
	}
	some, err := telemetry.ParseFilter("h2=debug,access=info,info")
	if err != nil {
		t.Fatal(err)
	}
	if unknown := levels.Unknown(some); len(unknown) != 1 || unknown[0] != "h2" {
		t.Errorf("unknown targets: %q", unknown)
	}
}

// gatedWriter blocks until it is opened.
type gatedWriter struct {
	open chan struct{}
	mu   sync.Mutex
	buf  bytes.Buffer
}

func (g *gatedWriter) Write(p []byte) (int, error) {
	<-g.open
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.buf.Write(p)
}

// TestWriterDropsAndCounts: while the reader does not read, the queue fills, and what does not fit is dropped.
func TestWriterDropsAndCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := &gatedWriter{open: make(chan struct{})}
		reg := prometheus.NewRegistry()
		w := telemetry.NewWriter(out, 10, reg)
		for i := range 100 {
			if n, err := fmt.Fprintf(w, "line %03d\n", i); n != 9 || err != nil {
				t.Errorf("write %d: %d, %v", i, n, err)
			}
			if i == 0 {
				synctest.Wait() // the goroutine has taken the first, and is stuck with it
			}
		}
		close(out.open)
		if err := w.Close(); err != nil {
			t.Error(err)
		}
		if got, want := out.buf.String(), "line 000\nline 001\nline 002\nline 003\nline 004\nline 005\nline 006\nline 007\nline 008\nline 009\nline 010\n"; got != want {
			t.Errorf("got\n%s", got)
		}
		if _, err := io.WriteString(w, "too late\n"); err != nil {
			t.Error(err)
		}
		want := "# HELP ambit_log_lines_dropped_total Log lines that were dropped because they came faster than they could be written, or could not be written at all.\n" +
			"# TYPE ambit_log_lines_dropped_total counter\nambit_log_lines_dropped_total 90\n"
		if err := testutil.GatherAndCompare(reg, strings.NewReader(want)); err != nil {
			t.Error(err)
		}
		if err := w.Close(); err != nil {
			t.Errorf("second Close: %v", err)
		}
	})
}

// TestWriterKeepsOrder: many lines of many sizes arrive whole and, from each writer, in order.
func TestWriterKeepsOrder(t *testing.T) {
	var out bytes.Buffer
	w := telemetry.NewWriter(&out, 100_000, nil)
	var writers sync.WaitGroup
	for g := range 4 {
		writers.Go(func() {
			for i := range 5000 {
				fmt.Fprintf(w, "%d %d %s\n", g, i, strings.Repeat("x", i%7*i%997))
			}
		})
	}
	writers.Wait()
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	var next [4]int
	for line := range strings.Lines(out.String()) {
		var g, i int
		var rest string
		if _, err := fmt.Sscanf(line, "%d %d %s", &g, &i, &rest); err != nil && i%7*i%997 != 0 {
			t.Fatalf("line %q: %v", line, err)
		}
		if i != next[g] || len(rest) != i%7*i%997 {
			t.Fatalf("writer %d: line %d with %d bytes, want line %d", g, i, len(rest), next[g])
		}
		next[g]++
	}
	if next != [4]int{5000, 5000, 5000, 5000} {
		t.Errorf("lines %v", next)
	}
}

// TestWriterOfADeadReader: Close gives up, and an error of the writer beneath is told.
func TestWriterOfADeadReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := &gatedWriter{open: make(chan struct{})}
		w := telemetry.NewWriter(out, 10, nil)
		io.WriteString(w, "line\n")
		start := time.Now()
		if err := w.Close(); err == nil || time.Since(start) > time.Minute {
			t.Errorf("Close: %v after %v", err, time.Since(start))
		}
		close(out.open)
	})
	r, pipe := io.Pipe()
	r.CloseWithError(errors.New("disk is full"))
	reg := prometheus.NewRegistry()
	w := telemetry.NewWriter(pipe, 10, reg)
	io.WriteString(w, "line\n")
	io.WriteString(w, "line\n")
	if err := w.Close(); err == nil || !strings.Contains(err.Error(), "disk is full") {
		t.Errorf("Close: %v", err)
	}
	if n := dropped(t, reg); n != 2 {
		t.Errorf("%v lines were dropped, want 2", n)
	}
}

// dropped is the value of the only metric of a registry.
func dropped(t *testing.T, reg *prometheus.Registry) float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil || len(families) != 1 {
		t.Fatalf("%d metrics, %v", len(families), err)
	}
	return families[0].Metric[0].Counter.GetValue()
}

func BenchmarkAccessLog(b *testing.B) {
	w := telemetry.NewWriter(io.Discard, 0, nil)
	a := telemetry.NewAccessLog(telemetry.NewLogger(w, telemetry.FormatJSON, slog.LevelInfo), 1)
	c := connection(false)
	b.ReportAllocs()
	for b.Loop() {
		a.Closed(b.Context(), c)
	}
	if err := w.Close(); err != nil {
		b.Error(err)
	}
}
