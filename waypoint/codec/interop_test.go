package codec

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/waypoint/message"
)

// app is what the proxy stands before in these tests.
func app() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/echo", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("x-method", r.Method)
		w.Header().Set("x-host", r.Host)
		w.Header().Set("x-uri", r.RequestURI)
		w.Header().Set("x-length", fmt.Sprint(r.ContentLength))
		w.Header().Set("x-te", r.Header.Get("Te"))
		w.Header().Set("x-cookie", r.Header.Get("Cookie"))
		w.Header().Add("x-two", "a")
		w.Header().Add("x-two", "b")
		w.Header().Set("Trailer", "x-sum")
		b, err := io.ReadAll(r.Body)
		n, _ := w.Write(b)
		w.Header().Set("x-sum", fmt.Sprint(n, err, r.Trailer.Get("x-sent")))
	})
	mux.HandleFunc("/sized", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "5")
		_, _ = io.WriteString(w, "12345")
	})
	mux.HandleFunc("/none", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(204) })
	mux.HandleFunc("/same", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(304) })
	mux.HandleFunc("/hints", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("link", "</style.css>")
		w.WriteHeader(103)
		w.WriteHeader(200)
	})
	mux.HandleFunc("/break", func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "some of it")
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	})
	return mux
}

// origin runs app, with HTTP/1.1 and cleartext HTTP/2.
func origin(t testing.TB) string {
	t.Helper()
	srv := httptest.NewUnstartedServer(app())
	srv.Config.ErrorLog = nil
	srv.Config.Protocols = new(http.Protocols)
	srv.Config.Protocols.SetHTTP1(true)
	srv.Config.Protocols.SetUnencryptedHTTP2(true)
	srv.Start()
	t.Cleanup(srv.Close)
	return srv.Listener.Addr().String()
}

// caller returns a client of net/http that speaks proto.
func caller(t testing.TB, proto message.Protocol) *http.Client {
	tr := &http.Transport{DisableCompression: true, Protocols: new(http.Protocols)}
	tr.Protocols.SetHTTP1(proto != message.HTTP2)
	tr.Protocols.SetUnencryptedHTTP2(proto == message.HTTP2)
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: patience}
}

// versions runs a test for each pair of versions on both sides of the proxy.
func versions(t *testing.T, f func(t *testing.T, c *http.Client, base string)) {
	for _, down := range []message.Protocol{message.HTTP11, message.HTTP2} {
		for _, up := range []message.Protocol{message.HTTP11, message.HTTP2} {
			t.Run(fmt.Sprintf("%v to %v", down, up), func(t *testing.T) {
				p := proxy(t, origin(t), up)
				f(t, caller(t, down), "http://"+p.addr)
			})
		}
	}
}

func TestEcho(t *testing.T) {
	versions(t, func(t *testing.T, c *http.Client, base string) {
		for _, size := range []int{0, 1, 5, 3000, 20_000, 1 << 20} {
			for _, known := range []bool{true, false} {
				payload := bytes.Repeat([]byte("0123456789"), size/10+1)[:size]
				var body io.Reader = bytes.NewReader(payload)
				if !known {
					body = io.MultiReader(body)
				}
				req, err := http.NewRequest("POST", base+"/echo?q=%20a&b", body)
				if err != nil {
					t.Fatal(err)
				}
				req.Host = "Shop.Example:8080"
				req.Header.Set("te", "trailers")
				req.Header.Set("Cookie", "a=1; b=2")
				if !known {
					req.Trailer = http.Header{"X-Sent": {"yes"}}
				}
				resp, err := c.Do(req)
				if err != nil {
					t.Fatalf("%d bytes: %v", size, err)
				}
				got, err := io.ReadAll(resp.Body)
				_ = resp.Body.Close()
				if err != nil || !bytes.Equal(got, payload) {
					t.Fatalf("%d bytes: got %d, %v", size, len(got), err)
				}
				want := map[string]string{"x-method": "POST", "x-host": "shop.example:8080", "x-uri": "/echo?q=%20a&b", "x-te": "trailers", "x-cookie": "a=1; b=2"}
				if known {
					want["x-length"] = fmt.Sprint(size)
				}
				for k, v := range want {
					if resp.Header.Get(k) != v {
						t.Errorf("%d bytes: %s is %q, want %q", size, k, resp.Header.Get(k), v)
					}
				}
				if v := resp.Header.Values("x-two"); strings.Join(v, "|") != "a|b" {
					t.Errorf("x-two: %q", v)
				}
				sum := fmt.Sprint(size, nil)
				if !known && size > 0 {
					sum += "yes"
				}
				if got := resp.Trailer.Get("x-sum"); !strings.HasPrefix(got, fmt.Sprint(size)) || !known && size > 0 && !strings.HasSuffix(got, "yes") {
					t.Errorf("%d bytes, known %v: trailer %q, want %q", size, known, got, sum)
				}
			}
		}
	})
}

func TestWithoutBody(t *testing.T) {
	versions(t, func(t *testing.T, c *http.Client, base string) {
		for _, tc := range []struct {
			method, path string
			status       int
			length       int64
			body         string
		}{
			{"GET", "/sized", 200, 5, "12345"},
			{"HEAD", "/sized", 200, 5, ""},
			{"GET", "/none", 204, 0, ""},
			{"GET", "/same", 304, 0, ""},
			{"GET", "/missing", 404, 19, "404 page not found\n"},
		} {
			req, err := http.NewRequest(tc.method, base+tc.path, nil)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := c.Do(req)
			if err != nil {
				t.Fatalf("%s %s: %v", tc.method, tc.path, err)
			}
			got, err := io.ReadAll(resp.Body)
			_ = resp.Body.Close()
			if err != nil || string(got) != tc.body || resp.StatusCode != tc.status || tc.length > 0 && resp.ContentLength != tc.length {
				t.Errorf("%s %s: %d %q, length %d, %v", tc.method, tc.path, resp.StatusCode, got, resp.ContentLength, err)
			}
		}
	})
}
