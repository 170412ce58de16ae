package ambit

import (
	"bytes"
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

const module = "github.com/ambit-mesh/ambit/"

// forbidden lists what a room may not import, itself or through others, and why. A name is a folder of this module or,
// with a dot in its first element, another module's path.
var forbidden = []struct{ room, imports, reason string }{
	{"api", "mesh", "contracts import nothing of ours"},
	{"api", "cni", "contracts import nothing of ours"},
	{"api", "ztunnel", "contracts import nothing of ours"},
	{"api", "waypoint", "contracts import nothing of ours"},
	{"api", "istiod-lite", "contracts import nothing of ours"},
	{"api", "cli", "contracts import nothing of ours"},
	{"api", "deploy", "contracts import nothing of ours"},
	{"api", "e2e", "contracts import nothing of ours"},
	{"mesh", "cni", "the ground floor does not know who stands on it"},
	{"mesh", "ztunnel", "the ground floor does not know who stands on it"},
	{"mesh", "waypoint", "the ground floor does not know who stands on it"},
	{"mesh", "istiod-lite", "the ground floor does not know who stands on it"},
	{"mesh", "cli", "the ground floor does not know who stands on it"},
	{"mesh", "deploy", "the ground floor does not know who stands on it"},
	{"mesh", "e2e", "the ground floor does not know who stands on it"},
	{"mesh", "k8s.io/client-go", "data planes learn the cluster by xDS only"},
	{"mesh/h2", "mesh/hbone", "h2 knows streams, headers and limits, and nothing of tunnels"},
	{"mesh/h2", "mesh/identity", "h2 knows streams, headers and limits, and nothing of identities"},
	{"cni", "ztunnel", "parts talk by ZDS, so that either can be the peer's"},
	{"cni", "waypoint", "parts never import each other"},
	{"cni", "istiod-lite", "parts never import each other"},
	{"cni", "cli", "parts do not know their command"},
	{"cni", "e2e", "the product does not know its tests"},
	{"ztunnel", "cni", "parts talk by ZDS, so that either can be the peer's"},
	{"ztunnel", "waypoint", "parts never import each other"},
	{"ztunnel", "istiod-lite", "parts talk by xDS, so that either can be the peer's"},
	{"ztunnel", "cli", "parts do not know their command"},
	{"ztunnel", "e2e", "the product does not know its tests"},
	{"ztunnel", "k8s.io/client-go", "one per node: it learns the cluster by xDS only"},
	{"ztunnel", "k8s.io/apimachinery", "one per node: it learns the cluster by xDS only"},
	{"waypoint", "cni", "parts never import each other"},
	{"waypoint", "ztunnel", "parts never import each other"},
	{"waypoint", "istiod-lite", "parts talk by xDS, so that either can be the peer's"},
	{"waypoint", "cli", "parts do not know their command"},
	{"waypoint", "e2e", "the product does not know its tests"},
	{"waypoint", "k8s.io/client-go", "it learns the cluster by xDS only"},
	{"waypoint/message", "waypoint/codec", "what travels does not know how it is written"},
	{"waypoint/codec", "waypoint/config", "codec knows nothing of routes, clusters or pools"},
	{"waypoint/route", "waypoint/config", "routes are compiled and matched without the rest of the configuration"},
	{"waypoint/config", "waypoint/upstream", "what is in force does not know who acts on it"},
	{"waypoint/config", "waypoint/proxy", "what is in force does not know who acts on it"},
	{"waypoint/upstream", "waypoint/proxy", "the way to backends does not know what is sent on it"},
	{"istiod-lite", "cni", "parts never import each other"},
	{"istiod-lite", "ztunnel", "parts never import each other"},
	{"istiod-lite", "waypoint", "parts never import each other"},
	{"istiod-lite", "cli", "parts do not know their command"},
	{"istiod-lite", "e2e", "the product does not know its tests"},
	{"deploy", "cli", "the chart does not know who installs it"},
	{"cli", "cni", "the command talks to running parts, it does not contain them"},
	{"cli", "ztunnel", "the command talks to running parts, it does not contain them"},
	{"cli", "waypoint", "the command talks to running parts, it does not contain them"},
	{"cli", "istiod-lite", "the command talks to running parts, it does not contain them"},
	{"cli", "e2e", "the product does not know its tests"},
}

// below tells whether the import path pkg is the module or folder name, or lies below it.
func below(pkg, name string) bool { return pkg == name || strings.HasPrefix(pkg, name+"/") }

func TestImportDirection(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "-json=ImportPath,Deps,Standard", "./...").Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			t.Fatalf("go list: %v\n%s", err, exit.Stderr)
		}
		t.Fatalf("go list: %v", err)
	}
	dec := json.NewDecoder(bytes.NewReader(out))
	seen := 0
	for {
		var p struct {
			ImportPath string
			Deps       []string
			Standard   bool
		}
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("decode output of go list: %v", err)
		}
		folder, ours := strings.CutPrefix(p.ImportPath, module)
		if !ours {
			continue
		}
		seen++
		for _, rule := range forbidden {
			if !below(folder, rule.room) {
				continue
			}
			for _, dep := range p.Deps {
				if below(strings.TrimPrefix(dep, module), rule.imports) {
					t.Errorf("%s imports %s: %s", folder, dep, rule.reason)
				}
			}
		}
	}
	if seen == 0 {
		t.Fatal("go list named no package of this module")
	}
}

// goFiles calls f for every Go file of the repository, nested modules included, that is written by hand.
func goFiles(t *testing.T, f func(name string, src []byte)) {
	t.Helper()
	generated := regexp.MustCompile(`(?m)^// Code generated .* DO NOT EDIT\.$`)
	err := filepath.WalkDir(".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			switch d.Name() {
			case ".git", ".cache", "bin", "testdata":
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(name, ".go") {
			return nil
		}
		src, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		if !generated.Match(src) {
			f(filepath.ToSlash(name), src)
		}
		return nil
	})
	if err != nil {
		t.Fatalf("walk the repository: %v", err)
	}
}

func TestPackageDocs(t *testing.T) {
	docs := map[string][]string{} // folder -> files with a package doc
	folders := map[string]bool{}
	goFiles(t, func(name string, src []byte) {
		if strings.HasSuffix(name, "_test.go") {
			return
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, src, parser.PackageClauseOnly|parser.ParseComments)
		if err != nil {
			t.Errorf("%v", err)
			return
		}
		dir := path.Dir(name)
		folders[dir] = true
		if file.Doc == nil {
			return
		}
		docs[dir] = append(docs[dir], name)
		want := "Package " + file.Name.Name + " "
		if file.Name.Name == "main" {
			want = "Command "
		}
		if !strings.HasPrefix(file.Doc.Text(), want) {
			t.Errorf("%s: the package doc does not start with %q", name, want)
		}
	})
	for dir := range folders {
		if n := len(docs[dir]); n != 1 {
			t.Errorf("%s: %d files have a package doc %v, want one: it is the rule of the folder", dir, n, docs[dir])
		}
	}
}

// Long files and functions hide seams. The limits are generous; nothing that grows past them is understood at a glance.
const (
	maxFileLines     = 700
	maxFunctionLines = 100
)

func TestHouseRules(t *testing.T) {
	goFiles(t, func(name string, src []byte) {
		fset := token.NewFileSet()
		file, err := parser.ParseFile(fset, name, src, parser.ParseComments)
		if err != nil {
			t.Errorf("%v", err)
			return
		}
		if n := bytes.Count(src, []byte("\n")); n > maxFileLines {
			t.Errorf("%s: %d lines, at most %d: find the seam", name, n, maxFileLines)
		}
		for _, dir := range strings.Split(path.Dir(name), "/") {
			switch dir {
			case "util", "utils", "common", "helpers", "misc":
				t.Errorf("%s: a folder called %q says nothing of what is in it", name, dir)
			}
		}
		test := strings.HasSuffix(name, "_test.go")
		ast.Inspect(file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.FuncDecl:
				if n.Name.Name == "init" && n.Recv == nil {
					t.Errorf("%s: init runs behind the reader's back; call it from run", fset.Position(n.Pos()))
				}
				if lines := fset.Position(n.End()).Line - fset.Position(n.Pos()).Line; lines > maxFunctionLines {
					t.Errorf("%s: %s has %d lines, at most %d: find the seam", fset.Position(n.Pos()), n.Name.Name, lines, maxFunctionLines)
				}
			case *ast.CallExpr:
				sel, ok := n.Fun.(*ast.SelectorExpr)
				if !ok {
					return true
				}
				if pkg, ok := sel.X.(*ast.Ident); ok && test && pkg.Name == "time" && sel.Sel.Name == "Sleep" && !insideSynctest(src) {
					t.Errorf("%s: a test that sleeps is slow or flaky; wait for a condition", fset.Position(n.Pos()))
				}
			}
			return true
		})
	})
}

// insideSynctest tells whether a file uses testing/synctest, in whose bubbles time.Sleep costs nothing and is exact.
func insideSynctest(src []byte) bool { return bytes.Contains(src, []byte(`"testing/synctest"`)) }
