package admin

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

func TestReadiness(t *testing.T) {
	var r Readiness
	get := func() (int, string) {
		rec := httptest.NewRecorder()
		r.Handler().ServeHTTP(rec, httptest.NewRequest("GET", "/healthz/ready", nil))
		return rec.Code, rec.Body.String()
	}
	if code, _ := get(); code != 200 {
		t.Errorf("with nothing to wait for: %d", code)
	}
	pods, plane := false, false
	r.Await("pods", func() bool { return pods })
	r.Await("control plane", func() bool { return plane })
	if code, body := get(); code != 500 || !strings.Contains(body, "control plane, pods") {
		t.Errorf("at the start: %d %s", code, body)
	}
	plane = true
	if code, body := get(); code != 500 || strings.Contains(body, "control plane") {
		t.Errorf("with the control plane: %d %s", code, body)
	}
	pods = true
	if code, _ := get(); code != 200 {
		t.Errorf("with all: %d", code)
	}
	pods = false
	if code, _ := get(); code != 200 {
		t.Errorf("what was once there is asked for again: %d", code)
	}
	r.Await("terminating", func() bool { return false })
	if code, body := get(); code != 500 || !strings.Contains(body, "terminating") {
		t.Errorf("at the end: %d %s", code, body)
	}
}

func TestAdmin(t *testing.T) {
	defer goleak.VerifyNone(t)
	quits := 0
	a := &Admin{
		Dump:        func() any { return map[string]string{"key": "value"} },
		Connections: func() any { return []int{1} },
		Level:       new(slog.LevelVar),
		Quit:        func() { quits++ },
		Version:     "<v1>",
	}
	s, err := Listen(a.Handler(), "127.0.0.1:0", "256.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- s.Serve(ctx) }()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	for _, tc := range []struct {
		method, path string
		code         int
		body         string
	}{
		{"GET", "/", 200, "&lt;v1&gt;"},
		{"GET", "/config_dump", 200, `"key": "value"`},
		{"GET", "/connections", 200, "1"},
		{"GET", "/logging", 200, "info"},
		{"POST", "/logging?level=error", 200, "error"},
		{"POST", "/logging?level=nonsense", 400, "nonsense"},
		{"DELETE", "/logging", 405, ""},
		{"POST", "/logging?level=a=debug,b=warn", 200, "warn"},
		{"POST", "/logging?level=off", 200, "off"},
		{"POST", "/logging?reset", 200, "info"},
		{"GET", "/quitquitquit", 405, ""},
		{"POST", "/quitquitquit", 200, "shutdown"},
		{"GET", "/debug/pprof/goroutine?debug=1", 200, "goroutine profile"},
		{"GET", "/nothing", 404, ""},
	} {
		req, err := http.NewRequest(tc.method, "http://"+s.lns[0].Addr().String()+tc.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != tc.code || !strings.Contains(string(body), tc.body) {
			t.Errorf("%s %s: %d %s, %v; want %d with %q", tc.method, tc.path, resp.StatusCode, body, err, tc.code, tc.body)
		}
	}
	if quits != 1 {
		t.Errorf("asked to end %d times, want once", quits)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if _, err := Listen(a.Handler(), "256.0.0.1:0"); err == nil {
		t.Error("no listener, and no error")
	}
}
