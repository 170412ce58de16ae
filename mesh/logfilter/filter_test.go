package logfilter_test

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/mesh/logfilter"
)

// entry has attributes by their names.
type entry map[string]any

func (e entry) Attribute(name string) any { return e[name] }

func TestMatches(t *testing.T) {
	e := entry{
		"response.code": int64(503), "request.url_path": "/health/live", "request.method": "GET", "request.headers": map[string]string{"x-tenant": "north"},
		"request.duration": 1500 * time.Millisecond, "connection.mtls": true, "request.time": time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC),
		"source.address": "10.0.0.1:80",
	}
	for expression, want := range map[string]bool{
		"response.code >= 400":                                                         true,
		"response.code >= 400 && response.code < 500":                                  false,
		"response.code in [200, 503]":                                                  true,
		"!request.url_path.startsWith('/health')":                                      false,
		`request.url_path.matches("^/health/(live|ready)$")`:                           true,
		"request.headers['x-tenant'] == 'north'":                                       true,
		"'x-tenant' in request.headers && !('x-other' in request.headers)":             true,
		"request.headers['x-other'] == 'north'":                                        false,
		"has(request.useragent)":                                                       false,
		"!has(request.useragent) || !(request.useragent.startsWith('Amazon-Route53'))": true,
		"request.useragent.contains('x')":                                              false, // it has no value
		"!request.useragent.contains('x')":                                             false,
		"request.useragent == 'x' || response.code == 503":                             true,
		"request.duration > duration('1s')":                                            true,
		"request.time < timestamp('2026-11-02T00:00:00Z')":                             true,
		"connection.mtls && request.method == 'GET'":                                   true,
		"source.address.startsWith('10.')":                                             true,
		"false":                                                                        false,
		"true":                                                                         true,
	} {
		f, err := logfilter.Compile(expression)
		if err != nil {
			t.Errorf("%s: %v", expression, err)
			continue
		}
		if got := f.Matches(e); got != want || f.String() != expression {
			t.Errorf("%s: %v, want %v", f, got, want)
		}
	}
}

// TestRefused: what is wrong is found before anything is logged by it.
func TestRefused(t *testing.T) {
	for expression, want := range map[string]string{
		" ":                                 "is empty",
		"response.code >=":                  "Syntax error",
		"response.cod >= 400":               "1:9: undefined field 'cod'",
		"respons.code >= 400":               "1:1: undeclared reference to 'respons'",
		"response.code >= '400'":            "no matching overload",
		"response.code":                     "of type int, and must be true or false",
		"request.method == 'a'\n|| nothing": "2:4: undeclared reference to 'nothing'",
		"[1, 2].exists(x, x == 1)":          "undeclared reference",
		"request":                           "must be true or false",
		strings.Repeat(" ", 5000) + "true":  "longer than 4096 bytes",
	} {
		if _, err := logfilter.Compile(expression); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%.40q: %v, want %s", expression, err, want)
		}
	}
}

// TestAttributesAreDocumented: docs/observability.md names all attributes.
func TestAttributesAreDocumented(t *testing.T) {
	page, err := os.ReadFile("../../docs/observability.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range logfilter.Attributes() {
		object, field, _ := strings.Cut(name, ".")
		_, rest, _ := strings.Cut(string(page), "\n| `"+object+".` |")
		line, _, _ := strings.Cut(rest, "\n")
		if !strings.Contains(line, "`"+field+"`") {
			t.Errorf("docs/observability.md does not tell of %s", name)
		}
	}
}

func BenchmarkMatches(b *testing.B) {
	f, err := logfilter.Compile("response.code >= 400 || request.url_path.startsWith('/debug')")
	if err != nil {
		b.Fatal(err)
	}
	var e logfilter.Entry = entry{"response.code": int64(200), "request.url_path": "/"}
	b.ReportAllocs()
	for b.Loop() {
		if f.Matches(e) {
			b.Fatal("it matches")
		}
	}
}

func BenchmarkCompile(b *testing.B) {
	for b.Loop() {
		if _, err := logfilter.Compile("response.code >= 400"); err != nil {
			b.Fatal(err)
		}
	}
}
