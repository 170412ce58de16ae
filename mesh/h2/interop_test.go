//lint:file-ignore SA1019 the peer of these tests is x/net/http2 itself, whose own types speak CONNECT without net/http between

package h2

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/http2"
)

// netServer serves handler by x/net/http2 on one connection and returns a client of ours on it.
func netServer(t *testing.T, cfg Config, srv *http2.Server, handler http.HandlerFunc) *running {
	t.Helper()
	a, b := tcpPair(t)
	var wg sync.WaitGroup
	wg.Go(func() { srv.ServeConn(b, &http2.ServeConnOpts{Handler: handler}) })
	t.Cleanup(wg.Wait)
	return run(t, NewClient(NetTransport(a), cfg))
}

// netClient returns a client of x/net/http2 that is connected to a server of ours.
func netClient(t *testing.T, cfg Config, handle func(*Stream)) (*http.Client, *running) {
	t.Helper()
	a, b := tcpPair(t)
	server := run(t, NewServer(NetTransport(b), cfg, handle))
	tr := &http2.Transport{
		AllowHTTP:          true,
		DisableCompression: true,
		DialTLSContext:     func(context.Context, string, string, *tls.Config) (net.Conn, error) { return a, nil },
	}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}, server
}

func TestClientWithNetServer(t *testing.T) {
	data := pattern(5 << 20)
	client := netServer(t, Config{}, &http2.Server{}, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Trailer", "x-sum")
		w.Header().Set("x-path", r.URL.Path)
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Errorf("server reads the body: %v", err)
		}
		_, _ = w.Write(body)
		w.Header().Set("x-sum", fmt.Sprint(len(body), r.Trailer.Get("x-last")))
	})
	s := opened(t, client, []Field{
		{Name: ":method", Value: "POST"}, {Name: ":scheme", Value: "http"}, {Name: ":path", Value: "/p"}, {Name: ":authority", Value: "h"},
		{Name: "trailer", Value: "x-last"},
	}, false)
	if _, err := s.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := s.WriteHeaders([]Field{{Name: "x-last", Value: "yes"}}, true); err != nil {
		t.Fatal(err)
	}
	fields := header(t, s)
	if got, _ := Value(fields, "x-path"); got != "/p" {
		t.Errorf("path %q", got)
	}
	body, err := io.ReadAll(s)
	if err != nil || !bytes.Equal(body, data) {
		t.Errorf("body of %d bytes, %v", len(body), err)
	}
	if diff := cmp.Diff([]Field{{Name: "x-sum", Value: fmt.Sprint(len(data), "yes")}}, s.Trailers()); diff != "" {
		t.Errorf("trailers (-want +got):\n%s", diff)
	}
}

func TestClientConnectsThroughNetServer(t *testing.T) {
	client := netServer(t, Config{}, &http2.Server{MaxConcurrentStreams: 7}, func(w http.ResponseWriter, r *http.Request) {
		if r.Method != "CONNECT" || r.Host != "10.0.0.1:80" {
			t.Errorf("request %s %s", r.Method, r.Host)
		}
		_ = http.NewResponseController(w).Flush()
		buf := make([]byte, 32<<10)
		for {
			n, err := r.Body.Read(buf)
			_, _ = w.Write(buf[:n])
			_ = http.NewResponseController(w).Flush()
			if err != nil {
				return
			}
		}
	})
	var streams []*Stream
	for range 7 {
		streams = append(streams, open(t, client, connect, false))
	}
	if _, err := client.Open(connect, false); err != ErrNoStreams {
		t.Errorf("open beyond the server's limit: %v", err)
	}
	for i, s := range streams {
		msg := fmt.Sprint("hello ", i)
		if _, err := io.WriteString(s, msg); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(msg))
		if _, err := io.ReadFull(s, got); err != nil || string(got) != msg {
			t.Errorf("echo %q, %v", got, err)
		}
		_ = s.CloseWrite()
		if n, err := s.Read(got); err != io.EOF {
			t.Errorf("read at the end: %d, %v", n, err)
		}
	}
}

func TestServerWithNetClient(t *testing.T) {
	data := pattern(5 << 20)
	hc, _ := netClient(t, Config{}, func(s *Stream) {
		req, _ := s.Headers(context.Background())
		body, err := io.ReadAll(s)
		if err != nil {
			t.Errorf("server reads the body: %v", err)
		}
		path, _ := Value(req, ":path")
		_ = s.WriteHeaders([]Field{{Name: ":status", Value: "200"}, {Name: "x-path", Value: path}, {Name: "trailer", Value: "x-sum"}}, false)
		_, _ = s.Write(body)
		last, _ := Value(s.Trailers(), "x-last")
		_ = s.WriteHeaders([]Field{{Name: "x-sum", Value: fmt.Sprint(len(body), last)}}, true)
	})
	req, _ := http.NewRequestWithContext(t.Context(), "POST", "http://h/p", bytes.NewReader(data))
	req.Trailer = http.Header{"X-Last": {"yes"}}
	resp, err := hc.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil || !bytes.Equal(body, data) {
		t.Errorf("body of %d bytes, %v", len(body), err)
	}
	if got, want := resp.Trailer.Get("x-sum"), fmt.Sprint(len(data), "yes"); got != want {
		t.Errorf("trailer %q, want %q", got, want)
	}
}

func TestNetClientConnects(t *testing.T) {
	hc, server := netClient(t, Config{}, echo)
	var wg sync.WaitGroup
	for i := range 10 {
		wg.Go(func() {
			pr, pw := io.Pipe()
			req := &http.Request{Method: "CONNECT", URL: &url.URL{Scheme: "http", Host: "h"}, Host: "10.0.0.1:80", Body: pr, Header: http.Header{}}
			resp, err := hc.Do(req.WithContext(t.Context()))
			if err != nil {
				t.Errorf("connect: %v", err)
				return
			}
			msg := strings.Repeat(fmt.Sprint("hello ", i), 1000)
			if _, err := io.WriteString(pw, msg); err != nil {
				t.Errorf("write: %v", err)
			}
			got := make([]byte, len(msg))
			if _, err := io.ReadFull(resp.Body, got); err != nil || string(got) != msg {
				t.Errorf("echo: %v", err)
			}
			_ = pw.Close()
			if n, err := resp.Body.Read(got); err != io.EOF {
				t.Errorf("read at the end: %d, %v", n, err)
			}
		})
	}
	wg.Wait()
	server.Shutdown()
	hc.CloseIdleConnections()
	if err := server.result(t); err != nil {
		t.Errorf("server after an orderly end: %v", err)
	}
}
