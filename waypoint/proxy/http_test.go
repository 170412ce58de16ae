package proxy

import (
	"net/http"
	"testing"
)

func TestForward(t *testing.T) {
	for _, version := range versions {
		t.Run(version, func(t *testing.T) {
			w := newWorld(t)
			w.httpPod("c", 1, name("one"))
			w.apply(`- {name: r, match: {prefix: /}, route: {cluster: c, timeout: 0s}}`)
			c := w.client(version)
			for range 3 {
				a := do(t, c, "POST", "/a?b=c", "hello")
				if want := "one POST stock.shop /a?b=c hello"; a.StatusCode != 200 || a.body != want || a.Header.Get("x-proto") != version {
					t.Fatalf("%d %q %v; want %q", a.StatusCode, a.body, a.Header, want)
				}
			}
			if a := do(t, c, http.MethodHead, "/a", ""); a.StatusCode != 200 || a.Header.Get("x-backend") != "one" {
				t.Errorf("HEAD: %d %v", a.StatusCode, a.Header)
			}
		})
	}
}
