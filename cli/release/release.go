package release

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"helm.sh/helm/v4/pkg/action"
	helmkube "helm.sh/helm/v4/pkg/kube"
	"helm.sh/helm/v4/pkg/release/common"
	v1 "helm.sh/helm/v4/pkg/release/v1"
	"helm.sh/helm/v4/pkg/storage/driver"

	"github.com/ambit-mesh/ambit/cli/kube"
)

const (
	// fieldManager is Helm's own, so that a later `helm upgrade` meets no conflict with what `ambit install` applied.
	fieldManager = "helm"
	// maxHistory is how many revisions are kept; an upgrade makes one for each part.
	maxHistory = 12
	// abandonedAfter is how old an unfinished revision must be to be taken for one that was cut off: applying takes
	// seconds, because nothing is waited for.
	abandonedAfter = time.Minute
)

// Revision is one state of the release.
type Revision struct {
	Number int
	// Version is that of the chart's parts.
	Version string
	// Status is Helm's: deployed, failed, superseded, pending-install, ...
	Status      string
	Description string
	Updated     time.Time
	// Values are the user's; they must not be changed.
	Values   map[string]any
	Manifest string
}

// Releases are the revisions of the release in one namespace. Not for concurrent use.
type Releases struct {
	cfg       *action.Configuration
	namespace string
}

// Open prepares for a release in the mesh's namespace; it does not talk to the cluster yet.
func Open(cluster *kube.Cluster, namespace string) (*Releases, error) {
	if helmkube.ManagedFieldsManager == "" {
		helmkube.ManagedFieldsManager = fieldManager
	}
	cfg := action.NewConfiguration()
	cfg.SetLogger(slog.DiscardHandler)
	if err := cfg.Init(cluster.Getter, namespace, "secret"); err != nil {
		return nil, fmt.Errorf("open Helm's records in namespace %s: %w", namespace, err)
	}
	return &Releases{cfg: cfg, namespace: namespace}, nil
}

// Current returns the last revision, or nil where there is none. A revision that was cut off while it was applied is
// recorded as failed, which Helm otherwise refuses to build upon.
func (r *Releases) Current() (*Revision, error) {
	last, err := r.cfg.Releases.Last(Name)
	if errors.Is(err, driver.ErrReleaseNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read Helm's records in namespace %s: %w", r.namespace, err)
	}
	rel, err := asV1(last)
	if err != nil {
		return nil, err
	}
	if rel.Info.Status.IsPending() {
		if age := time.Since(rel.Info.LastDeployed); age < abandonedAfter {
			return nil, fmt.Errorf("revision %d is being applied since %s by another ambit or Helm: try again in a minute",
				rel.Version, age.Round(time.Second))
		}
		rel.SetStatus(common.StatusFailed, "cut off while it was applied")
		if err := r.cfg.Releases.Update(rel); err != nil {
			return nil, fmt.Errorf("record that revision %d was cut off: %w", rel.Version, err)
		}
	}
	return revision(rel), nil
}

// History returns all recorded revisions, oldest first.
func (r *Releases) History() ([]*Revision, error) {
	all, err := r.cfg.Releases.History(Name)
	if err != nil {
		return nil, fmt.Errorf("read Helm's records in namespace %s: %w", r.namespace, err)
	}
	var revisions []*Revision
	for _, one := range all {
		rel, err := asV1(one)
		if err != nil {
			return nil, err
		}
		revisions = append(revisions, revision(rel))
	}
	return revisions, nil
}

// Install applies the chart where there is no release yet, or only an uninstalled one.
func (r *Releases) Install(ctx context.Context, chart *Chart, vals map[string]any) (*Revision, error) {
	install := action.NewInstall(r.cfg)
	install.ReleaseName, install.Namespace = Name, r.namespace
	install.SkipCRDs = true // applied by themselves, see package crd
	install.Replace = true
	install.DisableOpenAPIValidation = true // server-side apply refuses unknown fields by itself
	install.WaitStrategy = helmkube.HookOnlyStrategy
	install.Description = "ambit install " + chart.Version()
	rel, err := install.RunWithContext(ctx, chart.chart, vals)
	return finish(rel, err)
}

// Upgrade applies the chart over the last revision. From keep, if not nil, the parts for whose component it returns true
// stay as they are in the last revision's manifest.
func (r *Releases) Upgrade(ctx context.Context, chart *Chart, vals map[string]any, keep func(component string) bool, description string) (*Revision, error) {
	upgrade := action.NewUpgrade(r.cfg)
	upgrade.Namespace = r.namespace
	upgrade.SkipCRDs = true
	upgrade.ResetValues = true // vals is all of them
	upgrade.DisableOpenAPIValidation = true
	upgrade.WaitStrategy = helmkube.HookOnlyStrategy
	upgrade.MaxHistory = maxHistory
	upgrade.Description = description
	upgrade.ServerSideApply = "true"
	upgrade.ForceConflicts = true
	if keep != nil {
		current, err := r.Current()
		if err != nil {
			return nil, err
		}
		if current == nil {
			return nil, fmt.Errorf("there is no release in namespace %s", r.namespace)
		}
		upgrade.PostRenderer = &holdBack{keep: keep, current: current.Manifest}
	}
	rel, err := upgrade.RunWithContext(ctx, Name, chart.chart, vals)
	return finish(rel, err)
}

// Uninstall deletes what the last revision made, and all records. It does not wait until the objects are gone.
func (r *Releases) Uninstall() error {
	uninstall := action.NewUninstall(r.cfg)
	uninstall.WaitStrategy = helmkube.HookOnlyStrategy
	uninstall.IgnoreNotFound = true
	if _, err := uninstall.Run(Name); err != nil {
		return fmt.Errorf("uninstall the Helm release: %w", err)
	}
	return nil
}

func finish(rel any, err error) (*Revision, error) {
	if err != nil {
		return nil, readable(err)
	}
	r, err := asV1(rel)
	if err != nil {
		return nil, err
	}
	return revision(r), nil
}

func asV1(rel any) (*v1.Release, error) {
	r, ok := rel.(*v1.Release)
	if !ok || r == nil {
		return nil, fmt.Errorf("unexpected release type %T", rel)
	}
	return r, nil
}

func revision(rel *v1.Release) *Revision {
	rev := &Revision{Number: rel.Version, Values: rel.Config, Manifest: rel.Manifest}
	if rel.Info != nil {
		rev.Status, rev.Description, rev.Updated = string(rel.Info.Status), rel.Info.Description, rel.Info.LastDeployed
	}
	if rel.Chart != nil && rel.Chart.Metadata != nil {
		rev.Version = rel.Chart.Metadata.AppVersion
	}
	return rev
}

// Stored returns the chart and the values of a recorded revision, with which it can be applied again.
func (r *Releases) Stored(number int) (*Chart, map[string]any, error) {
	stored, err := r.cfg.Releases.Get(Name, number)
	if err != nil {
		return nil, nil, fmt.Errorf("read revision %d: %w", number, err)
	}
	rel, err := asV1(stored)
	if err != nil {
		return nil, nil, err
	}
	if rel.Chart == nil || rel.Chart.Metadata == nil {
		return nil, nil, fmt.Errorf("read revision %d: it has no chart", number)
	}
	return &Chart{chart: rel.Chart}, rel.Config, nil
}
