package admin

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/mesh/leaktest"
	"github.com/ambit-mesh/ambit/mesh/telemetry"
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
	why := "shop/web: no namespace"
	r.Explain("pods", func() string { return why })
	if _, body := get(); !strings.Contains(body, "pending: pods (shop/web: no namespace)") {
		t.Errorf("with a detail: %s", body)
	}
	why = ""
	if _, body := get(); !strings.Contains(body, "pending: pods\n") {
		t.Errorf("without one: %q", body)
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
	defer leaktest.Check(t)
	quits := 0
	var ready Readiness
	ready.Await("<pods>", func() bool { return false })
	a := &Admin{
		Program: "ztunnel",
		Pages: []Page{
			{"config_dump", "", func(w io.Writer) error { _, err := io.WriteString(w, `{"key": "value"}`); return err }},
			{"connections", "", func(w io.Writer) error { io.WriteString(w, "{"); return errors.New("no more") }},
		},
		Levels:  telemetry.NewLevels(nil, "access", "xds"),
		Ready:   &ready,
		Quit:    func() { quits++ },
		Version: "<v1>",
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
		{"GET", "/", 200, "pending: &lt;pods&gt;"},
		{"GET", "/config_dump", 200, `"key": "value"`},
		{"GET", "/logging", 200, "info"},
		{"POST", "/logging?level=error", 200, "error"},
		{"POST", "/logging?level=nonsense", 400, "nonsense"},
		{"DELETE", "/logging", 405, ""},
		{"POST", "/logging?level=xds=debug,warn", 200, "is xds=debug,warn"},
		{"POST", "/logging?level=access:off", 200, "is access=off,xds=debug,warn"},
		{"POST", "/logging?level=a=debug,info", 400, "no target a; targets are access, xds"},
		{"POST", "/logging", 200, "is access=off,xds=debug,warn"},
		{"POST", "/logging?level=off", 200, "off"},
		{"POST", "/logging?level=reset", 200, "is info"},
		{"POST", "/logging?level=warn", 200, "is warn"},
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
	// What broke off does not look like the whole.
	resp, err := client.Get("http://" + s.lns[0].Addr().String() + "/connections")
	if err == nil {
		_, err = io.ReadAll(resp.Body)
		resp.Body.Close()
	}
	if err == nil {
		t.Error("/connections ended early, and nobody was told")
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
