// Package release puts the chart into a cluster with Helm, so that what `ambit install` made can be looked at, upgraded and
// rolled back with Helm too. It is the only room that imports Helm. It applies and returns: waiting and telling belong to others.
package release

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"strings"

	"golang.org/x/mod/semver"
	"helm.sh/helm/v4/pkg/action"
	"helm.sh/helm/v4/pkg/chart/common"
	"helm.sh/helm/v4/pkg/chart/loader/archive"
	chart "helm.sh/helm/v4/pkg/chart/v2"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/cli/values"
	"helm.sh/helm/v4/pkg/getter"
	v1 "helm.sh/helm/v4/pkg/release/v1"

	"github.com/ambit-mesh/ambit/deploy"
)

// Name is the name of the Helm release.
const Name = "ambit"

// Values is where the user's values come from; later ones win.
type Values struct {
	// Files are YAML files, or "-" for standard input.
	Files []string
	// Set are "path=value" pairs, parsed as Helm does.
	Set []string
	// SetString are the same, whose value is always a string.
	SetString []string
}

// Merge reads and merges the values.
func (v Values) Merge() (map[string]any, error) {
	options := values.Options{ValueFiles: v.Files, Values: v.Set, StringValues: v.SetString}
	merged, err := options.MergeValues(getter.Providers{})
	if err != nil {
		return nil, fmt.Errorf("read the values (-f, --set): %w", err)
	}
	return merged, nil
}

// Chart is the embedded chart of a version of the client.
type Chart struct {
	chart *chart.Chart
}

// Tag is the tag of the images that a client of this version installs: that of its own release, or "dev", the tag of
// images built on the spot, where it is no release.
func Tag(version string) string {
	if semver.IsValid(version) && semver.Build(version) == "" && !isDescribed(version) {
		return version
	}
	return "dev"
}

// isDescribed tells whether a version was made up by `git describe` or the go command for a commit that is no release:
// v0.3.1-4-gabcdef0, v0.3.1-dirty, v0.3.2-0.20261123024117-abcdef012345.
func isDescribed(version string) bool {
	pre := strings.TrimPrefix(semver.Prerelease(version), "-")
	if pre == "" {
		return false
	}
	for _, known := range []string{"alpha", "beta", "rc"} {
		if rest, ok := strings.CutPrefix(pre, known); ok && !strings.ContainsAny(rest, "-") {
			return false
		}
	}
	return true
}

// buildAnnotation is that of a chart in which templates find the build whose images they install.
const buildAnnotation = "ambit.io/build"

// Load returns the chart as the client of this version installs it. The custom resource definitions are left out where
// withCRDs is false: Helm never upgrades them, and they would only swell every stored revision.
func Load(version string, withCRDs bool) (*Chart, error) {
	files := deploy.Chart()
	var buffered []*archive.BufferedFile
	err := fs.WalkDir(files, ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		if !withCRDs && strings.HasPrefix(name, deploy.CRDFolder+"/") {
			return nil
		}
		data, err := fs.ReadFile(files, name)
		if err != nil {
			return err
		}
		buffered = append(buffered, &archive.BufferedFile{Name: name, Data: data})
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the chart: %w", err)
	}
	c, err := loader.LoadFiles(buffered)
	if err != nil {
		return nil, fmt.Errorf("load the chart: %w", err)
	}
	if tag := Tag(version); tag != "dev" {
		c.Metadata.Version, c.Metadata.AppVersion = strings.TrimPrefix(tag, "v"), tag
	}
	c.Metadata.Annotations = map[string]string{buildAnnotation: version}
	return &Chart{chart: c}, nil
}

// Version is the version of what the chart installs.
func (c *Chart) Version() string { return c.chart.Metadata.AppVersion }

// renderedFor is the Kubernetes version that templates see where there is no cluster to ask.
const renderedFor = "v1.37.0"

// Render returns the YAML of everything that the chart makes, without a cluster.
func (c *Chart) Render(ctx context.Context, namespace string, vals map[string]any) (string, error) {
	cfg := action.NewConfiguration()
	cfg.SetLogger(slog.DiscardHandler)
	install := action.NewInstall(cfg)
	install.DryRunStrategy = action.DryRunClient
	install.ReleaseName, install.Namespace = Name, namespace
	install.IncludeCRDs = true
	install.DisableOpenAPIValidation = true
	install.KubeVersion = &common.KubeVersion{Version: renderedFor, Major: "1", Minor: "37"}
	rel, err := install.RunWithContext(ctx, c.chart, vals)
	if err != nil {
		return "", fmt.Errorf("render the chart: %w", readable(err))
	}
	r, ok := rel.(*v1.Release)
	if !ok {
		return "", fmt.Errorf("render the chart: unexpected release type %T", rel)
	}
	return r.Manifest, nil
}

// readable cuts what Helm and its schema validator put around the fault itself.
func readable(err error) error {
	text := err.Error()
	const front = "values don't meet the specifications of the schema(s) in the following chart(s):\n"
	rest, ok := strings.CutPrefix(text, front)
	if !ok {
		return err
	}
	var faults []string
	for line := range strings.Lines(rest) {
		line = strings.TrimSpace(line)
		if fault, ok := strings.CutPrefix(line, "- "); ok {
			faults = append(faults, fault)
		}
	}
	return errors.New("values are not valid: " + strings.Join(faults, "; "))
}

// Overlay returns the values of base with those of over laid upon them; neither is changed. As in Helm, maps merge, and a
// null in over takes a value away.
func Overlay(base, over map[string]any) map[string]any {
	return loader.MergeMaps(base, over)
}
