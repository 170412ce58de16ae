package route_test

import (
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/waypoint/route"
)

func TestPaths(t *testing.T) {
	normal := route.Paths{Normalize: true}
	for _, tt := range []struct {
		name    string
		paths   route.Paths
		in, out string
		verdict route.PathVerdict
	}{
		{"plain", normal, "/a/b.c?x=/../y", "/a/b.c?x=/../y", route.PathTaken},
		{"dots", normal, "/a/./b/../c", "/a/c", route.PathTaken},
		{"dots at the end", normal, "/a/b/..", "/a/", route.PathTaken},
		{"dot at the end", normal, "/a/.?q", "/a/?q", route.PathTaken},
		{"above the root", normal, "/../../a", "/a", route.PathTaken},
		{"only above the root", normal, "/..", "/", route.PathTaken},
		{"three dots are a name", normal, "/a/.../b", "/a/.../b", route.PathTaken},
		{"hidden file", normal, "/.well-known/x", "/.well-known/x", route.PathTaken},
		{"encoded dots", normal, "/a/%2e%2E/b", "/b", route.PathTaken},
		{"half encoded dots", normal, "/a/.%2e/b", "/b", route.PathTaken},
		{"encoded twice", normal, "/a/%252e%252e/b", "/a/%252e%252e/b", route.PathTaken},
		{"unreserved", normal, "/%7Eann/%61", "/~ann/a", route.PathTaken},
		{"reserved stays", normal, "/a%3Fb%20c", "/a%3Fb%20c", route.PathTaken},
		{"encoded slash stays", normal, "/a%2Fb/..%2f", "/a%2Fb/..%2f", route.PathTaken},
		{"back-slashes", normal, `/a\..\b`, "/b", route.PathTaken},
		{"zero", normal, "/a%00", "/a%00", route.PathRefused},
		{"no escape", normal, "/a%zz%2", "/a%zz%2", route.PathTaken},
		{"no escape comes about", normal, "/a%%33%33/%3%32e", "/a%%333/%3%32e", route.PathTaken},
		{"slashes stay", normal, "//a//b", "//a//b", route.PathTaken},
		{"dots between slashes", normal, "/a//../b", "/a/b", route.PathTaken},
		{"star", normal, "*", "*", route.PathTaken},
		{"nothing set", route.Paths{}, "/a/../b", "/a/../b", route.PathTaken},
		{"merge", route.Paths{MergeSlashes: true}, "//a///b?c//d", "/a/b?c//d", route.PathTaken},
		{"merge after dots", route.Paths{Normalize: true, MergeSlashes: true}, "/a/.//b", "/a/b", route.PathTaken},
		{"reject", route.Paths{Normalize: true, EscapedSlashes: route.RejectSlashes}, "/a%5cb", "/a%5cb", route.PathRefused},
		{"decode", route.Paths{Normalize: true, EscapedSlashes: route.DecodeSlashes}, "/a%2F..%2fb", "/b", route.PathTaken},
		{"redirect", route.Paths{EscapedSlashes: route.RedirectSlashes}, "/a%2Fb?q", "/a/b?q", route.PathRedirected},
		{"nothing to redirect", route.Paths{Normalize: true, EscapedSlashes: route.RedirectSlashes}, "/a/./b", "/a/b", route.PathTaken},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got, verdict := tt.paths.Apply(tt.in); got != tt.out || verdict != tt.verdict {
				t.Errorf("%q becomes %q, %v; want %q, %v", tt.in, got, verdict, tt.out, tt.verdict)
			}
		})
	}
}

func TestPathsAllocateNothing(t *testing.T) {
	p := route.Paths{Normalize: true, MergeSlashes: true}
	if n := testing.AllocsPerRun(100, func() { p.Apply("/api/v1/things/17?filter=%2e%2e") }); n != 0 {
		t.Errorf("%v allocations for a path that is normal", n)
	}
}

// FuzzPaths: what comes out is a fixed point without dot segments, and begins with a slash.
func FuzzPaths(f *testing.F) {
	for _, s := range []string{"/a/../b", "/%2e%2e/..", `/\..\x`, "/a%2f../b", "//..//", "/.%2e%2f"} {
		f.Add(s, true, byte(2))
	}
	f.Fuzz(func(t *testing.T, in string, merge bool, slashes byte) {
		p := route.Paths{Normalize: true, MergeSlashes: merge, EscapedSlashes: route.EscapedSlashes(slashes % 4)}
		once, verdict := p.Apply(in)
		if in == "" || in[0] != '/' || verdict == route.PathRefused {
			return
		}
		path, _, _ := strings.Cut(once, "?")
		if path == "" || path[0] != '/' {
			t.Fatalf("%q becomes %q", in, once)
		}
		for segment := range strings.SplitSeq(path, "/") {
			if segment == "." || segment == ".." {
				t.Fatalf("%q becomes %q", in, once)
			}
		}
		if p.EscapedSlashes == route.KeepSlashes {
			if twice, _ := p.Apply(once); twice != once {
				t.Fatalf("%q becomes %q, and that %q", in, once, twice)
			}
		}
	})
}
