package product

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/ambit-mesh/ambit/e2e/cluster/image"
)

func TestChoose(t *testing.T) {
	all, err := choose(nil)
	if err != nil || len(all) < 4 {
		t.Fatalf("choose() = %d images, %v", len(all), err)
	}
	for _, i := range all {
		if i.OnRequest {
			t.Errorf("choose() has %s, which is built on request", i.Name)
		}
	}
	if echo, err := choose([]string{"echo-advanced"}); err != nil || len(echo) != 1 {
		t.Errorf("choose(echo-advanced) = %v, %v", echo, err)
	}
	some, err := choose([]string{"cni", "ztunnel"})
	if err != nil || len(some) != 2 || some[0].Name != "cni" || some[1].Name != "ztunnel" {
		t.Errorf("choose(cni, ztunnel) = %v, %v", some, err)
	}
	if _, err := choose([]string{"nonesuch"}); err == nil || !strings.Contains(err.Error(), "ztunnel") {
		t.Errorf("error is %v, want one that lists the images", err)
	}
}

// TestDockerfilesMakeTheSameImages compares what those who have a builder get with what `make images` makes.
func TestDockerfilesMakeTheSameImages(t *testing.T) {
	for _, i := range Images() {
		if i.Test {
			continue
		}
		path := filepath.Join("..", "..", "..", "deploy", "images", i.Name, "Dockerfile")
		data, err := os.ReadFile(path)
		if err != nil {
			t.Error(err)
			continue
		}
		text := string(data)
		for _, program := range i.Programs {
			if !strings.Contains(text, program) {
				t.Errorf("%s does not build %s", path, program)
			}
		}
		if want := `ENTRYPOINT ["` + strings.Join(i.Entrypoint, `", "`) + `"]`; !strings.Contains(text, want) {
			t.Errorf("%s has no %s", path, want)
		}
		if i.User != "" && !strings.Contains(text, "USER "+i.User) {
			t.Errorf("%s does not name user %s", path, i.User)
		}
		if len(i.Userland) > 0 {
			for _, pkg := range Packages() {
				if !slices.Contains(strings.Fields(text), pkg) {
					t.Errorf("%s does not install %s", path, pkg)
				}
			}
		}
	}
}

func TestIptablesNames(t *testing.T) {
	links := iptablesNames()
	for name, want := range map[string]string{
		"/usr/sbin/iptables": "xtables-nft-multi", "/usr/sbin/ip6tables-legacy-restore": "xtables-legacy-multi",
		"/usr/sbin/iptables-nft-save": "xtables-nft-multi", "/usr/sbin/ip6tables-save": "xtables-nft-multi",
	} {
		if links[name] != want {
			t.Errorf("%s is %q, want %s", name, links[name], want)
		}
	}
	for name := range links {
		// Debian has every one of these names too; a wrong one would be a program that nobody calls.
		if _, err := os.Lstat(name); err != nil && exists("/usr/sbin/xtables-nft-multi") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestUserlandOfTheAgentRuns runs every program of the node agent's userland with nothing but its image's files, and lets both
// kinds of iptables load the modules that capture needs.
func TestUserlandOfTheAgentRuns(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("skipped: needs root to change the root folder")
	}
	if !exists("/usr/sbin/xtables-nft-multi") {
		t.Skip("skipped: this machine has no iptables (make images installs it)")
	}
	chosen, err := choose([]string{"cni"})
	if err != nil {
		t.Fatal(err)
	}
	archive := filepath.Join(t.TempDir(), "cni.tar")
	if err := image.Write(image.Definition{Name: "docker.io/test/cni:dev", Userland: chosen[0].Userland, Links: chosen[0].Links}, archive); err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	unpack(t, archive, root)
	calls := [][]string{
		{"ipset", "version"}, {"nft", "-v"}, {"conntrack", "-V"}, {"ip", "-V"},
		{"iptables-nft-restore", "-V"}, {"ip6tables-legacy-save", "-V"},
	}
	for _, program := range []string{"iptables", "ip6tables", "iptables-nft", "iptables-legacy", "ip6tables-legacy"} {
		for _, module := range []string{"TPROXY", "REDIRECT", "CONNMARK", "CT", "SNAT"} {
			calls = append(calls, []string{program, "-j", module, "-h"})
		}
		for _, module := range []string{"conntrack", "connmark", "mark", "set", "comment", "addrtype"} {
			calls = append(calls, []string{program, "-m", module, "-h"})
		}
	}
	for _, args := range calls {
		path := "/usr/sbin/" + args[0]
		if args[0] == "ip" {
			path = "/bin/ip"
		}
		cmd := exec.Command(path, args[1:]...)
		cmd.Dir = "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: root, Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v: %v\n%s", args, err, out)
		}
	}
}

// unpack writes the only layer of an archive to a folder.
func unpack(t *testing.T, archive, root string) {
	t.Helper()
	data, err := os.ReadFile(archive)
	if err != nil {
		t.Fatal(err)
	}
	var layer []byte
	for tr := tar.NewReader(bytes.NewReader(data)); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		blob, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(h.Name, "blobs/") && len(blob) > len(layer) { // beside it are only a manifest and a config
			layer = blob
		}
	}
	for tr := tar.NewReader(bytes.NewReader(layer)); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		at := filepath.Join(root, h.Name)
		switch h.Typeflag {
		case tar.TypeDir:
			err = os.MkdirAll(at, 0o755)
		case tar.TypeSymlink:
			err = os.Symlink(h.Linkname, at)
		default:
			var content []byte
			if content, err = io.ReadAll(tr); err == nil {
				err = os.WriteFile(at, content, h.FileInfo().Mode())
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
