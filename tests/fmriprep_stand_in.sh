#!/bin/sh
# Stands in for fMRIPrep, inside a test's image or installed: writes down what it was given and what it may do, then
# behaves as code/behaviour-<participant> of the dataset tells. Like fMRIPrep, it is process 1 of its container and deaf
# to SIGTERM.
[ "$1" != --version ] || { echo "fMRIPrep v$FAKE_VERSION"; exit; }
given="$*"
data=$1
out=$2
licence=/opt/freesurfer/license.txt # where fmriprep-docker puts it
while [ $# -gt 0 ]; do
    case $1 in
        --participant-label) label=$2 ;;
        --session-label) session=$2 ;;
        --fs-license-file) licence=$2 ;;
        -w) work=$2 ;;
    esac
    shift
done
behaviour=$(cat "$data/code/behaviour-$label" 2>/dev/null || echo success)
writable() { touch "$1/trace" 2>/dev/null && rm "$1/trace" && echo yes || echo no; }
mkdir -p "$out/logs"
{
    echo "arguments: $given"
    echo "user: $(id -u)"
    echo "TEMPLATEFLOW_HOME: $TEMPLATEFLOW_HOME"
    echo "templates writable: $(writable "$TEMPLATEFLOW_HOME")"
    echo "data writable: $(writable "$data")"
    echo "interfaces: $(ls /sys/class/net | tr '\n' ' ')"
} > "$out/logs/$label"
if [ ! -s "$licence" ] || grep -q forged "$licence"; then
    echo "ERROR: a valid license file is required for FreeSurfer to run."
    exit 126
fi
echo "an attempt" >> "$work/attempts"
mkdir -p "$out/sourcedata/freesurfer/sub-$label/scripts"
env > "$out/sourcedata/freesurfer/sub-$label/scripts/recon-all.env" # as FreeSurfer does

outputs() { # runs at most
    count=0
    for raw in "$data/sub-$label"/func/*_bold.nii.gz "$data/sub-$label"/ses-${session:-*}/func/*_bold.nii.gz; do
        [ -e "$raw" ] || [ -L "$raw" ] || continue
        count=$((count + 1))
        [ "$count" -le "$1" ] || break
        run=$(basename "$raw" _bold.nii.gz)
        folder=$out/${raw#"$data"/}
        folder=${folder%/*}
        mkdir -p "$folder"
        stem=$folder/${run}_space-MNI152NLin6Asym_res-2
        cp "$data"/code/preproc_bold.nii.gz "${stem}_desc-preproc_bold.nii.gz"
        cp "$data"/code/preproc_bold.json "${stem}_desc-preproc_bold.json"
        cp "$data"/code/brain_mask.nii.gz "${stem}_desc-brain_mask.nii.gz"
        cp "$data"/code/confounds.tsv "$folder/${run}_desc-confounds_timeseries.tsv"
    done
}

killed() {
    sh -c 'kill -9 $$'
    exit 137
}

echo "nipype.workflow INFO: starting"
case $behaviour in
    success) outputs 100 ;;
    half) outputs 1 ;;
    cut)
        outputs 100
        head -c 2000 "$data"/code/preproc_bold.nii.gz > "${stem}_desc-preproc_bold.nii.gz"
        ;;
    error)
        outputs 1
        echo "RuntimeError: command recon-all failed"
        exit 1
        ;;
    killed) killed ;;
    "killed once")
        [ "$(wc -l < "$work/attempts")" -gt 1 ] || killed
        outputs 100
        ;;
    full)
        outputs 1
        dd if=/dev/zero of="$work/intermediate" bs=64k count=1000 || exit 1
        ;;
    hanging)
        echo "hanging"
        sleep 600
        ;;
esac
