package rules

import (
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"

	"github.com/ambit-mesh/ambit/cni/xtables"
)

var update = flag.Bool("update", false, "rewrite the goldens")

// golden is a story about one kind of pod: its Config, its rules, and what either kind of iptables lists of them.
type golden struct {
	path    string
	archive *txtar.Archive
	config  Config
}

func goldens(t *testing.T) []golden {
	t.Helper()
	paths, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no goldens: %v", err)
	}
	var out []golden
	for _, p := range paths {
		a, err := txtar.ParseFile(p)
		if err != nil {
			t.Fatal(err)
		}
		g := golden{path: p, archive: a}
		for word := range strings.FieldsSeq(g.section("config")) {
			switch word {
			case "ipv6":
				g.config.IPv6 = true
			case "bypass-inbound":
				g.config.BypassInbound = true
			case "dns":
				g.config.DNS = true
			default:
				t.Fatalf("%s: unknown word %q in config", p, word)
			}
		}
		out = append(out, g)
	}
	return out
}

func (g golden) section(name string) string {
	i := slices.IndexFunc(g.archive.Files, func(f txtar.File) bool { return f.Name == name })
	if i < 0 {
		return ""
	}
	return string(g.archive.Files[i].Data)
}

// check compares a section with what was got, or rewrites it.
func (g golden) check(t *testing.T, name, got string) {
	t.Helper()
	if !strings.HasSuffix(got, "\n") {
		got += "\n"
	}
	if *update {
		i := slices.IndexFunc(g.archive.Files, func(f txtar.File) bool { return f.Name == name })
		if i < 0 {
			g.archive.Files = append(g.archive.Files, txtar.File{Name: name})
			i = len(g.archive.Files) - 1
		}
		g.archive.Files[i].Data = []byte(got)
		if err := os.WriteFile(g.path, txtar.Format(g.archive), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(g.section(name), got); diff != "" {
		t.Errorf("%s, section %s (-want +got):\n%s", g.path, name, diff)
	}
}

func TestGoldens(t *testing.T) {
	for _, g := range goldens(t) {
		t.Run(filepath.Base(g.path), func(t *testing.T) { g.check(t, "rules", For(g.config).String()) })
	}
}

func TestForIsAValue(t *testing.T) {
	if diff := cmp.Diff(For(Config{IPv6: true}).String(), For(Config{IPv6: true}).String()); diff != "" {
		t.Error(diff)
	}
}

func TestOwnership(t *testing.T) {
	for name, test := range map[string]struct {
		save          string
		ours, foreign bool
	}{
		"nothing":        {save: "*nat\n:OUTPUT ACCEPT [0:0]\nCOMMIT"},
		"ours":           {save: "*nat\n:ISTIO_OUTPUT - [0:0]\n-A ISTIO_OUTPUT -p tcp -m mark --mark 0x111/0xfff -j ACCEPT", ours: true},
		"cut off":        {save: "*nat\n:ISTIO_PRERT - [0:0]", ours: true},
		"cut off later":  {save: "*nat\n:ISTIO_OUTPUT_NEW - [0:0]\n-A ISTIO_OUTPUT_NEW -d 169.254.7.127/32 -p tcp -j ACCEPT", ours: true},
		"an older one's": {save: "*nat\n:ISTIO_OUTPUT - [0:0]\n-A ISTIO_OUTPUT ! -d 127.0.0.1/32 -p tcp -m mark ! --mark 0x539/0xfff -j REDIRECT --to-ports 15001", ours: true},
		"a sidecar's":    {save: "*nat\n:ISTIO_OUTPUT - [0:0]\n-A ISTIO_OUTPUT -m owner --uid-owner 1337 -j RETURN\n-A ISTIO_OUTPUT -j ISTIO_REDIRECT", foreign: true},
		"a TPROXY's":     {save: "*mangle\n:ISTIO_OUTPUT - [0:0]\n-A ISTIO_OUTPUT -m mark --mark 0x539 -j RETURN", foreign: true},
	} {
		t.Run(name, func(t *testing.T) {
			tables := xtables.Parse(test.save)
			foreign := perBackend{&xtables.Backend{}: tables}.foreign() != nil
			if mine := len(ours(tables, Carry)) > 0; mine != test.ours || foreign != test.foreign {
				t.Errorf("ours %v, foreign %v; want %v, %v", mine, foreign, test.ours, test.foreign)
			}
		})
	}
}
