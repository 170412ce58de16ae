package cache

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Recipe says what is built.
type Recipe struct {
	Go      string // version of the compiler
	Arch    string
	Parts   []Part
	Sources map[string]string // checksums of the module's own files, by path
}

// Part is what one call of the compiler makes.
type Part struct {
	Name     string
	Packages []string          // main packages; each becomes the program bin/<last element>
	Links    map[string]string // other names of a program: link to program
	Cgo      bool
	Tags     string
	Set      map[string]string // string variables that the linker sets, by package path and name
	Image    *Image            // the part's only program becomes this image too
}

// Image is a container image of one program.
type Image struct {
	Name       string
	Program    string // absolute path in the image
	Entrypoint []string
}

// Versions of what is built, as go.mod requires them; the programs report them.
const (
	KubernetesVersion = "v1.37.2"
	ContainerdVersion = "v2.4.2"
)

// kubernetesVersion sets what the version packages of Kubernetes are given by its own build. Without it nothing that
// reads the version of a server or a node understands what it gets.
func kubernetesVersion() map[string]string {
	set := map[string]string{}
	major, rest, _ := strings.Cut(strings.TrimPrefix(KubernetesVersion, "v"), ".")
	minor, _, _ := strings.Cut(rest, ".")
	for _, pkg := range []string{"k8s.io/component-base/version", "k8s.io/client-go/pkg/version"} {
		set[pkg+".gitVersion"] = KubernetesVersion
		set[pkg+".gitMajor"], set[pkg+".gitMinor"] = major, minor
		set[pkg+".gitCommit"], set[pkg+".gitTreeState"] = "", "clean"
	}
	return set
}

// PartsTag is the build tag of those of our programs that hold whole projects, so that nothing but a build of the cluster
// compiles them: `go vet ./...` and `go test ./...` in this module take seconds.
const PartsTag = "ambit_parts"

// Parts is everything that a cluster runs.
func Parts() []Part {
	const (
		self       = "github.com/ambit-mesh/ambit/e2e/cluster/parts/"
		containerd = "github.com/containerd/containerd/v2/cmd/"
		plugins    = "github.com/containernetworking/plugins/plugins/"
	)
	return []Part{
		{
			Name: "Kubernetes", Packages: []string{self + "kube"}, Set: kubernetesVersion(),
			Links: map[string]string{
				"kube-apiserver": "kube", "kube-controller-manager": "kube", "kube-scheduler": "kube",
				"kubelet": "kube", "kube-proxy": "kube", "kubectl": "kube",
			},
		},
		{Name: "etcd", Packages: []string{self + "etcd"}},
		{
			Name: "containerd", Packages: []string{containerd + "containerd", containerd + "containerd-shim-runc-v2", containerd + "ctr"},
			Set: map[string]string{"github.com/containerd/containerd/v2/version.Version": ContainerdVersion},
		},
		{Name: "runc", Packages: []string{"github.com/opencontainers/runc"}, Cgo: true, Tags: "seccomp urfave_cli_no_docs"},
		{Name: "CNI plugins", Packages: []string{
			plugins + "main/ptp", plugins + "main/bridge", plugins + "main/loopback", plugins + "ipam/host-local", plugins + "meta/portmap",
		}},
		{
			Name: "CoreDNS", Packages: []string{self + "coredns"},
			Image: &Image{Name: "docker.io/ambit/coredns:dev", Program: "/coredns", Entrypoint: []string{"/coredns"}},
		},
		{
			Name: "pause", Packages: []string{self + "pause"},
			Image: &Image{Name: "docker.io/ambit/pause:dev", Program: "/pause", Entrypoint: []string{"/pause"}},
		},
		{Name: "node init", Packages: []string{self + "nodeinit"}},
	}
}

// sources are what of the module itself goes into the programs.
func sources() []string { return []string{"go.mod", "go.sum", "parts", "boot", "image"} }

// NewRecipe reads the module in the folder dir.
func NewRecipe(dir, goVersion, arch string) (Recipe, error) {
	r := Recipe{Go: goVersion, Arch: arch, Parts: Parts(), Sources: map[string]string{}}
	for _, source := range sources() {
		err := filepath.WalkDir(filepath.Join(dir, source), func(path string, e fs.DirEntry, err error) error {
			if err != nil || e.IsDir() {
				return err
			}
			sum, err := checksum(path)
			if err != nil {
				return err
			}
			name, err := filepath.Rel(dir, path)
			r.Sources[name] = sum
			return err
		})
		if err != nil {
			return r, fmt.Errorf("read recipe: %w", err)
		}
	}
	return r, nil
}

// Key names the recipe: 16 hexadecimal digits.
func (r Recipe) Key() string {
	data, err := json.Marshal(r) // maps are written in the order of their keys
	if err != nil {
		panic(err) // strings only
	}
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:8])
}

// Programs lists the names below bin/.
func (p Part) Programs() []string {
	var out []string
	for _, pkg := range p.Packages {
		out = append(out, filepath.Base(pkg))
	}
	for link := range p.Links {
		out = append(out, link)
	}
	slices.Sort(out)
	return out
}

func checksum(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := f.WriteTo(h); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
