package message

import (
	"io"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// list makes a header of "name: value" in lines.
func list(lines ...string) Fields {
	var f Fields
	for _, l := range lines {
		name, value, _ := strings.Cut(l, ": ")
		f.Add(name, value)
	}
	return f
}

func TestFields(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(*Fields)
		want   Fields
	}{
		{"set one of several", func(f *Fields) { f.Set("a", "3") }, list("a: 3", "b: 1", "c: 1")},
		{"set one", func(f *Fields) { f.Set("b", "2") }, list("a: 1", "b: 2", "a: 2", "c: 1", "a: ")},
		{"set a new one", func(f *Fields) { f.Set("d", "1") }, list("a: 1", "b: 1", "a: 2", "c: 1", "a: ", "d: 1")},
		{"add", func(f *Fields) { f.Add("a", "3") }, list("a: 1", "b: 1", "a: 2", "c: 1", "a: ", "a: 3")},
		{"delete several", func(f *Fields) { f.Del("a") }, list("b: 1", "c: 1")},
		{"delete none", func(f *Fields) { f.Del("d") }, list("a: 1", "b: 1", "a: 2", "c: 1", "a: ")},
	} {
		f := list("a: 1", "b: 1", "a: 2", "c: 1", "a: ")
		kept := f.Clone()
		before := f.Clone()
		tc.change(&f)
		if diff := cmp.Diff(tc.want, f); diff != "" {
			t.Errorf("%s: -want +got:\n%s", tc.name, diff)
		}
		if diff := cmp.Diff(before, kept); diff != "" {
			t.Errorf("%s changed a clone:\n%s", tc.name, diff)
		}
	}
}

func TestLookup(t *testing.T) {
	f := list("a: 1", "b: ", "a: 2")
	if v := f.Get("a"); v != "1" {
		t.Errorf("Get: %q", v)
	}
	if v, ok := f.Lookup("b"); v != "" || !ok {
		t.Errorf("Lookup of an empty one: %q, %v", v, ok)
	}
	if f.Has("c") || f.Has("A") {
		t.Error("Has what is not there")
	}
	if diff := cmp.Diff([]string{"1", "2"}, f.Values("a")); diff != "" {
		t.Error(diff)
	}
	for name, want := range map[string]string{"a": "1,2", "b": "", "c": ""} {
		if v, ok := f.Joined(name); v != want || ok != f.Has(name) {
			t.Errorf("Joined %s: %q, %v", name, v, ok)
		}
	}
	one := list("x: 1", "y: 2")
	if n := testing.AllocsPerRun(100, func() { one.Joined("y"); one.Get("y"); one.Del("z"); one.Set("x", "3") }); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestValid(t *testing.T) {
	for _, tc := range []struct {
		f   func(string) bool
		yes []string
		no  []string
	}{
		{ValidName, []string{"a", "x-y_z", "1"}, []string{"", "A", "a b", "a:", ":path", "a\r", "\xc3\xa9"}},
		{ValidValue, []string{"", "a b", "\xc3\xa9", "a\tb"}, []string{"a\r\nb", "a\x00", "a\nb", "\x7f"}},
		{ValidAuthority, []string{"a", "a:80", "10.0.0.1", "[::1]:80", "a-b.c"}, []string{"", "a/b", "u@a", "a b", "a,b", "a?b", "a#b", "a\\b", "a\r\n"}},
		{ValidPath, []string{"/", "*", "//a", "/a?b=c&d", "/%20", "/\xc3\xa9"}, []string{"", "a", "/ ", "/#", "/\x7f", "/\r\n", "**", "http://a/"}},
		{ValidMethod, []string{"GET", "M-SEARCH", "get"}, []string{"", "GE T", "GET\r\n", "G:"}},
	} {
		for _, s := range tc.yes {
			if !tc.f(s) {
				t.Errorf("%q is refused", s)
			}
		}
		for _, s := range tc.no {
			if tc.f(s) {
				t.Errorf("%q is taken", s)
			}
		}
	}
}

func TestClone(t *testing.T) {
	r := &Request{Method: "POST", Path: "/a?b?c", Header: list("a: 1"), Body: String("x"), Length: 1}
	c := r.Clone()
	c.Header.Set("a", "2")
	if r.Header.Get("a") != "1" || c.Body != nil || c.Length != 0 || c.Method != "POST" {
		t.Errorf("%+v of %+v", c, r)
	}
	if path, query := r.SplitPath(); path != "/a" || query != "b?c" {
		t.Errorf("%q, %q", path, query)
	}
}

func TestBytes(t *testing.T) {
	b := Bytes([]byte("abc"), list("x: 1"))
	if p, err := b.Next(); string(p) != "abc" || err != nil {
		t.Errorf("%q, %v", p, err)
	}
	if _, err := b.Next(); err != io.EOF || b.Trailers().Get("x") != "1" || !b.Ready() {
		t.Errorf("%v, %v", err, b.Trailers())
	}
	if _, err := String("").Next(); err != io.EOF {
		t.Errorf("an empty one: %v", err)
	}
}
