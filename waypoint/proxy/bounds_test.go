package proxy

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
)

// TestTapsTogether: what waits in all taps is bounded as a whole, and each gives back what it held, however it ends.
func TestTapsTogether(t *testing.T) {
	h := &held{most: 100}
	first, second, third := newTap(h), newTap(h), newTap(h)
	body := &pieces{}
	first.put(make([]byte, 60), nil, body)
	second.put(make([]byte, 30), nil, body)
	second.put(make([]byte, 30), nil, body)
	if _, err := second.Next(); !errors.Is(err, errManyMirrors) {
		t.Errorf("the tap that asks for too much: %v", err)
	}
	if n := h.now.Load(); n != 60 {
		t.Errorf("%d bytes are held, want those of the first tap", n)
	}
	third.put(make([]byte, 40), nil, body)
	if p, err := first.Next(); len(p) != 60 || err != nil {
		t.Errorf("the first tap gives %d bytes, error %v", len(p), err)
	}
	third.put(make([]byte, 60), nil, body)
	third.put(nil, io.EOF, body)
	third.Close()
	third.Close()
	third.put(make([]byte, 10), nil, body)
	first.put(make([]byte, maxTapped+1), nil, body)
	if n := h.now.Load(); n != 0 {
		t.Errorf("%d bytes are held when nothing waits", n)
	}
}

// TestMirrorsHoldLittle: copies to a backend that does not take them hold no more than they may, and nothing when they are over.
func TestMirrorsHoldLittle(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.MaxMirrored = 1000 })
	w.httpPod("c", 1, name("one"))
	w.httpPod("mirror", 2, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) }))
	w.apply(`- {name: r, match: {prefix: /}, route: {cluster: c, timeout: 0s, request_mirror_policies: [{cluster: mirror}]}}`)
	c := w.client("HTTP/1.1")
	if a := do(t, c, "POST", "/", strings.Repeat("b", 100_000)); a.StatusCode != 200 {
		t.Errorf("%d %q", a.StatusCode, a.body)
	}
	await(t, "the copy is given up", func() bool { return w.proxy.Counts().MirrorsDropped.Load() == 1 })
	await(t, "nothing is held", func() bool { return w.proxy.mirrors.held.now.Load() == 0 })
	do(t, c, "POST", "/", "small")
	await(t, "nothing is held after a small one", func() bool {
		return w.proxy.mirrors.count.Load() == 0 && w.proxy.mirrors.held.now.Load() == 0
	})
	if n := w.proxy.Counts().MirrorsDropped.Load(); n != 1 {
		t.Errorf("%d copies were dropped, want 1", n)
	}
}

// TestRetryPlace: a retry has its place among the cluster's until its response begins, and not until that ends.
func TestRetryPlace(t *testing.T) {
	w := newWorld(t)
	goOn := make(chan struct{})
	var asked atomic.Int64
	w.httpPod("c", 1, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if asked.Add(1)%2 == 1 {
			rw.WriteHeader(503)
			return
		}
		_, _ = flushing{rw}.Write([]byte("some"))
		<-goOn
	}))
	w.more["c"] = "circuit_breakers: {thresholds: [{max_retries: 1}]}\n"
	w.apply(`- {name: r, match: {prefix: /}, route: {cluster: c, timeout: 0s, retry_policy: {retry_on: "5xx", num_retries: 1}}}`)
	for range 2 {
		resp, err := w.client("HTTP/1.1").Get("http://stock.shop/")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if resp.StatusCode != 200 {
			t.Errorf("%d while another's response goes on", resp.StatusCode)
		}
	}
	close(goOn)
}

// TestUnreadable: a request that cannot be read is answered, counted and logged with the reason.
func TestUnreadable(t *testing.T) {
	w := newWorld(t)
	w.httpPod("c", 1, name("one"))
	w.apply(all)
	s := w.mustTunnel(webPort)
	defer s.Close()
	if _, err := io.WriteString(s, "GET / HTTP/1.1\r\nhost: stock.shop\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 1024)
	n, _ := s.Read(b)
	if got := string(b[:n]); !strings.HasPrefix(got, "HTTP/1.1 400 ") {
		t.Errorf("answered %q", got)
	}
	await(t, "it is logged", func() bool {
		return strings.Contains(w.log.String(), "request refused") && strings.Contains(w.log.String(), "content-length")
	})
	families, err := w.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	counted := false
	for _, f := range families {
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				counted = counted || f.GetName() == "istio_requests_total" && l.GetName() == "response_code" && l.GetValue() == "400"
			}
		}
	}
	if !counted {
		t.Error("it is not counted")
	}
}
