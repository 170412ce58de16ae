package hbone

import (
	"net/netip"
	"strings"
	"testing"
)

func TestParseAuthority(t *testing.T) {
	good := map[string]Authority{
		"10.0.0.1:80":                  {Addr: netip.MustParseAddr("10.0.0.1"), Port: 80},
		"[fd00::1]:65535":              {Addr: netip.MustParseAddr("fd00::1"), Port: 65535},
		"[::ffff:10.0.0.1]:1":          {Addr: netip.MustParseAddr("10.0.0.1"), Port: 1},
		"stock.shop.svc:8080":          {Host: "stock.shop.svc", Port: 8080},
		"Stock.Shop.SVC.:8080":         {Host: "stock.shop.svc", Port: 8080},
		"a_b.example.com:443":          {Host: "a_b.example.com", Port: 443},
		strings.Repeat("a", 63) + ":1": {Host: strings.Repeat("a", 63), Port: 1},
	}
	for in, want := range good {
		if got, err := ParseAuthority(in); err != nil || got != want {
			t.Errorf("%q: %+v, %v; want %+v", in, got, err, want)
		}
	}
	for _, in := range []string{
		"", ":", ":80", "10.0.0.1", "10.0.0.1:", "10.0.0.1:0", "10.0.0.1:65536", "10.0.0.1:+1", "10.0.0.1:080", "10.0.0.1:-1",
		"10.0.0.1:8x", "10.0.0.256:80", "1.2.3:80", "12345:80", "fd00::1:80", "[fd00::1]", "[fd00::1:80", "[10.0.0.1]:80", "[fe80::1%eth0]:80",
		"user@host:80", "http://host:80", "host/path:80", "ho st:80", "host..x:80", ".host:80", "hóst:80", "host\x00:80",
		strings.Repeat("a", 64) + ":1", strings.Repeat("a.", 127) + "a:1", strings.Repeat("x", 1000),
	} {
		if got, err := ParseAuthority(in); err == nil {
			t.Errorf("%q: %+v, want an error", in, got)
		}
	}
}

func FuzzParseAuthority(f *testing.F) {
	for _, s := range []string{"10.0.0.1:80", "[fd00::1]:8080", "stock.shop.svc:443", "a:1", "[::]:1", "x", "[::ffff:1.2.3.4]:5", "1.2.3:4"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, err := ParseAuthority(s)
		if err != nil {
			return
		}
		if a.Port == 0 || a.Addr.IsValid() == (a.Host != "") {
			t.Fatalf("%q: %+v", s, a)
		}
		again, err := ParseAuthority(a.String())
		if err != nil || again != a {
			t.Fatalf("%q: %+v, whose text %q is %+v, %v", s, a, a.String(), again, err)
		}
	})
}
